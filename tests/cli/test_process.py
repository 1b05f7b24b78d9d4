"""How a command ends: its exit code, and what is said about it in one line."""

import os
import signal
from collections.abc import Callable, Iterator

import click
import pytest

from curate.cli.process import (
    LONGEST,
    Terminated,
    _interrupt_once,
    run,
    same_command,
    silence_libraries,
)
from curate.errors import OptionError, RunError


def command_that(do: Callable[[], object]) -> click.Command:
    return click.Command("do", callback=do)


def raising(error: BaseException) -> click.Command:
    def fail() -> None:
        raise error

    return command_that(fail)


def with_note(error: BaseException) -> BaseException:
    error.add_note("To resume: `x`.")
    return error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OptionError("K is 0."), 2, "curate: K is 0."),
        (RunError("it diverged."), 1, "curate: it diverged."),
        (with_note(RunError("it diverged.")), 1, "curate: it diverged. To resume: `x`."),
        (RuntimeError("a\n  b"), 1, "curate: the run failed with RuntimeError: a b (CURATE_TRACE"),
        (OSError("disk full"), 1, "curate: the run failed with OSError: disk full"),
        (KeyboardInterrupt(), 130, "curate: interrupted; no result was written."),
        (Terminated("x is kept"), 143, "curate: told to end; x is kept."),
        (RunError("\x1b[31mred"), 1, "curate: \\x1b[31mred"),
        (click.UsageError("no such option"), 2, "Error: no such option"),
    ],
)
def test_an_end_has_a_code_and_a_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), []) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().splitlines()[-1].startswith(line)
    assert "Traceback" not in err


def test_a_command_that_works_says_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command_that(lambda: click.echo("done")), []) == 0
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory")])
def test_who_has_too_little_memory_is_told_what_to_change(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), []) == 1
    assert "smaller training.micro_batch or trajectory.snapshots" in capsys.readouterr().err


def test_a_traceback_is_for_those_who_ask(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CURATE_TRACEBACK", "1")
    assert run(raising(RunError("it diverged.")), []) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_a_very_long_message_loses_its_middle(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raising(RunError("a" * LONGEST + "the end")), []) == 1
    line = capsys.readouterr().err
    assert len(line) < LONGEST + 50
    assert " ... aaa" in line
    assert line.endswith("the end\n")


class OneOfTwo:
    """A rank beside another one, which failed first with a code, or did not."""

    def __init__(self, rank: int, first: int | None) -> None:
        self.rank, self.first = rank, first
        self.failed: list[int] = []
        self.waited = 0

    def fail(self, code: int) -> int | None:
        self.failed.append(code)
        return self.first

    def wait(self) -> None:
        self.waited += 1


@pytest.mark.parametrize(("first", "code", "lines"), [(None, 2, 1), (143, 143, 0)])
def test_of_processes_only_the_first_to_fail_says_why(
    first: int | None, code: int, lines: int, capsys: pytest.CaptureFixture[str]
) -> None:
    group = OneOfTwo(0, first)
    assert run(raising(OptionError("K is 0.")), [], group) == code  # type: ignore[arg-type]
    assert (group.failed, group.waited) == ([2], 0)
    assert capsys.readouterr().err.count("\n") == lines


@pytest.mark.parametrize("rank", [0, 1])
def test_of_processes_rank_0_prints(rank: int, capsys: pytest.CaptureFixture[str]) -> None:
    group = OneOfTwo(rank, None)
    assert run(command_that(lambda: click.echo("done")), [], group) == 0  # type: ignore[arg-type]
    assert group.waited == 1
    assert capsys.readouterr().out == ("done\n" if rank == 0 else "")


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        (["a b.yaml"], " 'a b.yaml' --resume"),
        (["x", "--set", "a=1", "--set", "b=2"], " x --set a=1 --set b=2 --resume"),
        (["--resume", "x", "--out", "y"], " x --out y --resume"),
    ],
)
def test_the_command_that_is_running_can_be_typed_again(typed: list[str], again: str) -> None:
    said = []

    @click.command("do")
    @click.argument("recipe")
    @click.option("--set", "overrides", multiple=True)
    @click.option("--out", default="here")
    @click.option("--resume", is_flag=True)
    def do(**_: object) -> None:
        said.append(same_command("--resume"))

    assert run(do, typed) == 0
    assert said[0].endswith(again)


@pytest.fixture
def _signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("_signals")
def test_a_process_on_its_way_out_is_interrupted_once() -> None:
    with pytest.raises(Terminated):
        _interrupt_once(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # heard, and ignored
    signal.raise_signal(signal.SIGINT)


def test_libraries_are_silent_unless_the_user_has_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("DATASETS_VERBOSITY", "info")
    silence_libraries()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert os.environ["DATASETS_VERBOSITY"] == "info"
