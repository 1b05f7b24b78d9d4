"""A process that runs a command: how it ends, alone or with others.

Exit codes: 0 done, 1 the run failed, 2 something given to us needs changing, 130 interrupted.
"""

import io
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from curate.errors import CurateError

if TYPE_CHECKING:
    from curate.ranks import Group


def run_alone(command: Callable[..., Any]) -> int:
    """Run a click command with the arguments of this process; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's way to interrupt
    return run(command)


def run_together(command: Callable[..., Any], arguments: list[str] | None = None) -> int:
    """Run a click command as one of the processes that torchrun started; returns the exit code.

    They fail together: the first says why, all exit with its code.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt_once)
    from curate.ranks import join_group

    joined: list[Group] = []
    code = _guarded(lambda: joined.append(join_group()))
    if code:
        return code
    (group,) = joined
    code = run(command, arguments, group)
    group.close(failed=code != 0)
    return code


def run(
    command: Callable[..., Any], arguments: list[str] | None = None, group: "Group | None" = None
) -> int:
    """Run a click command, with a group if not alone, of which rank 0 prints; returns the code."""

    def do() -> None:
        command(arguments, standalone_mode=False, obj=group)
        if group is not None:
            group.wait()  # until all have done it: one may have failed at the very end

    speaks = group is None or group.rank == 0
    with nullcontext() if speaks else redirect_stdout(io.StringIO()):
        return _guarded(do, group)


def _guarded(do: Callable[[], object], group: "Group | None" = None) -> int:
    try:
        return _attempt(do, group)
    except (click.Abort, KeyboardInterrupt) as stop:
        left = (stop.__cause__ or stop).args  # click wraps it
        message = f"curate: interrupted; {left[0] if left else 'no result was written'}."
        return _fail(130, lambda: click.echo(message, err=True), group)


def _attempt(do: Callable[[], object], group: "Group | None") -> int:
    try:
        do()
    except click.Abort:  # an interrupt, and a RuntimeError as well
        raise
    except CurateError as error:
        return _fail(error.exit_code, partial(_explain, str(error)), group)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        return _fail(2, error.show, group)
    except (RuntimeError, MemoryError, OSError) as error:  # torch's own, a full disk
        message = (
            f"the run failed with {type(error).__name__}: {error} (CURATE_TRACEBACK=1 shows where)"
        )
        return _fail(1, partial(_explain, message), group)
    return 0


def _fail(code: int, explain: Callable[[], None], group: "Group | None") -> int:
    """Explain a failure, unless another process failed first; returns the exit code of all."""
    first = None if group is None else group.fail(code)
    if first is not None:
        return first
    explain()
    return code


def _explain(message: str) -> None:
    """One line on stderr; the traceback too for those who ask for it."""
    if os.environ.get("CURATE_TRACEBACK"):
        traceback.print_exc()
    click.echo(f"curate: {' '.join(message.split())}", err=True)


def _interrupt_once(*_: object) -> None:
    """torchrun interrupts all that are left when one has failed: they may be on their way out."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def silence_libraries() -> None:
    """Our bars are the only ones, and nobody asks the network without need."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
