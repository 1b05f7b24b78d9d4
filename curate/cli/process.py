"""A process that runs a command: how it ends, alone or with others.

Exit codes: 0 done, 1 the run failed, 2 the command, the recipe or the data needs changing, 130
interrupted (Ctrl-C), 143 told to end (SIGTERM).
"""

import io
import os
import shlex
import signal
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from typing import TYPE_CHECKING

import click

from curate.errors import CurateError
from curate.runtime.allocator import keep_freed_memory

if TYPE_CHECKING:
    from curate.runtime.ranks import Group

OUT_OF_MEMORY = ("out of memory", "outofmemory", "memoryerror", "t allocate memory")
LESS_MEMORY = (
    ". Free some, or start again with a smaller training.micro_batch or "
    "trajectory.snapshots: another micro_batch is another run, so none is tried unasked."
)
FAILURES = (RuntimeError, MemoryError, OSError)
"""What ends a run without being ours: torch's own, a full disk."""
LONGEST = 4000
"""Characters of a message, which may quote a user's file."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: a batch system's way to interrupt."""


def run_alone(command: click.Command) -> int:
    """Run a click command with the arguments of this process; returns the exit code."""
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _terminate)
    return run(command)


def run_together(command: click.Command, arguments: list[str] | None = None) -> int:
    """Run a click command as one of the processes that torchrun started; returns the exit code.

    They fail together: the first says why, all exit with its code.
    """
    keep_freed_memory()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt_once)
    from curate.runtime.ranks import join_group

    joined: list[Group] = []
    code = _guarded(lambda: joined.append(join_group()))
    if code:
        return code
    (group,) = joined
    code = run(command, arguments, group)
    group.close(failed=code != 0)
    return code


def run(
    command: click.Command, arguments: list[str] | None = None, group: "Group | None" = None
) -> int:
    """Run a click command, with a group if not alone, of which rank 0 prints; returns the code."""

    def do() -> None:
        command.main(arguments, standalone_mode=False, obj=group)
        if group is not None:
            group.wait()  # until all have done it: one may have failed at the very end

    speaks = group is None or group.rank == 0
    with nullcontext() if speaks else redirect_stdout(io.StringIO()):
        return _guarded(do, group)


def _guarded(do: Callable[[], object], group: "Group | None" = None) -> int:
    try:
        return _attempt(do, group)
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error
        code, how = (143, "told to end") if isinstance(cause, Terminated) else (130, "interrupted")
        left = cause.args[0] if cause.args else "no result was written"
        return _fail(code, cause, f"{how}; {left}.", group)


def _attempt(do: Callable[[], object], group: "Group | None") -> int:
    try:
        do()
    except click.Abort:  # an interrupt, and a RuntimeError as well
        raise
    except CurateError as error:
        return _fail(error.exit_code, error, str(error), group)
    except click.exceptions.Exit as finished:
        return finished.exit_code
    except click.ClickException as error:
        return _fail(2, error, "", group)
    except FAILURES as error:
        what = f"{type(error).__name__}: {error}"
        message = f"the run failed with {what} (CURATE_TRACEBACK=1 shows where)"
        wants_memory = any(sign in what.lower() for sign in OUT_OF_MEMORY)
        return _fail(1, error, message + (LESS_MEMORY if wants_memory else "."), group)
    return 0


def _fail(code: int, error: BaseException, message: str, group: "Group | None") -> int:
    """Explain a failure, unless another process failed first; returns the exit code of all.

    One line on stderr; the traceback too for those who ask for it.
    """
    first = None if group is None else group.fail(code)
    if first is not None:
        return first
    if isinstance(error, click.ClickException):
        error.show()
        return code
    if os.environ.get("CURATE_TRACEBACK"):
        traceback.print_exception(error)
    words = " ".join([message, *getattr(error, "__notes__", [])]).split()
    click.echo(f"curate: {_printable(' '.join(words))}", err=True)
    return code


def _printable(line: str) -> str:
    """The line without what a terminal obeys, and without the middle where it is very long."""
    if len(line) > LONGEST:
        line = f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line
    )


def same_command(flag: str) -> str:
    """The command that is running as it was typed, with a flag."""
    context = click.get_current_context()
    words = context.command_path.split()
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        values = context.params[name]
        for value in values if isinstance(values, tuple) else (values,):
            words += parameter.opts[:1] if isinstance(parameter, click.Option) else []
            words += [] if value is True else [str(value)]
    return shlex.join([*words, *([] if flag in words else [flag])])


def _terminate(*_: object) -> None:
    raise Terminated


def _interrupt_once(received: int, *_: object) -> None:
    """torchrun interrupts all that are left when one has failed: they may be on their way out."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    raise Terminated if received == signal.SIGTERM else KeyboardInterrupt


def silence_libraries() -> None:
    """Our bars and messages are the only ones, and nobody asks the network without need."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DATASETS_VERBOSITY", "critical")  # what cannot be read, it raises too
