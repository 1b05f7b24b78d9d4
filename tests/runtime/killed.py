"""Runs of `curate select` that kill themselves, each in a process of its own, without a word.

`python -m tests.runtime.killed OUT,... NAME:N,... RECIPE` selects to each OUT, and dies there by
SIGKILL when NAME comes up for the N-th time. Prints how they ended.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from curate.cli.main import cli, run
from curate.output import directory as output
from curate.pipeline import select
from curate.pipeline.job import prepare
from curate.pipeline.score import choose
from curate.recipe import load_recipe
from curate.runtime import files, journal, progress, savepoints
from curate.runtime import resume as unfinished


def death(number: int) -> Callable[[], bool]:
    """A function that is true when it is called for the number-th time."""
    times = iter(range(1, number))
    return lambda: next(times, None) is None


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_step(comes: Callable[[], bool]) -> None:
    """As the progress bar counts them: of scoring, then of retraining."""

    class Counted(progress.Pace):
        def tick(self, count: int) -> float | None:
            if comes():
                die()
            return super().tick(count)

    progress.Pace = Counted


def within_a_savepoint(comes: Callable[[], bool]) -> None:
    save = files.save_tensors

    def half(tensors: Any, path: Path, *metadata: Any) -> None:
        save(tensors, path, *metadata)
        if comes():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()

    files.save_tensors = half


def after_a_savepoint(comes: Callable[[], bool]) -> None:
    write = savepoints.write_sealed

    def written(*arguments: Any) -> None:
        write(*arguments)
        if comes():
            die()

    savepoints.write_sealed = written


def within_a_line(comes: Callable[[], bool]) -> None:
    enter = journal.Journal.enter

    def torn(self: Any, *key: Any, value: Any) -> Any:
        if comes():
            line = journal._line(key, value)
            with self._path.open("a") as file:
                file.write(line[: len(line) // 2])
            die()
        return enter(self, *key, value=value)

    journal.Journal.enter = torn


def within_the_dataset(comes: Callable[[], bool]) -> None:
    save = output.write_shards

    def begun(*arguments: Any) -> None:
        save(*arguments)
        if comes():
            die()

    output.write_shards = begun


def in_clearing_up(comes: Callable[[], bool]) -> None:
    delete = unfinished._delete

    def deleted(path: Path) -> None:
        delete(path)
        if (path.parent.with_name(path.parent.name[1 : -len(".unfinished")])).exists() and comes():
            die()

    unfinished._delete = deleted


MOMENTS = {
    moment.__name__: moment
    for moment in (
        in_a_step,
        within_a_savepoint,
        after_a_savepoint,
        within_a_line,
        within_the_dataset,
        in_clearing_up,
    )
}


def main() -> None:
    outs, moments, recipe = sys.argv[1:]
    torch.set_num_threads(1)
    select.leave_report = lambda *_: None
    job = prepare(load_recipe(recipe), torch.device("cpu"))
    choose(job, "look_ahead", progress.Phases())  # what takes long the first time
    ends = {}
    for out, moment in zip(outs.split(","), moments.split(","), strict=True):
        if (child := os.fork()) == 0:
            savepoints.SHARE = float("inf")  # one after every round
            name, number = moment.split(":")
            MOMENTS[name](death(int(number)))
            os._exit(run(cli, ["select", recipe, "--out", out, "--quiet"]))
        _, status = os.waitpid(child, 0)
        ends[moment] = os.waitstatus_to_exitcode(status)
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
