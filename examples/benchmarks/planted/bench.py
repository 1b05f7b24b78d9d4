"""Where faults are planted: runs in processes of their own, and runs that nobody disturbed."""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import torch
import transformers

import curate.cli.summary
import curate.output.inspect
import curate.pipeline.apply
import curate.pipeline.select
import curate.pipeline.verify
from curate.cli.main import cli, run
from curate.runtime import savepoints
from planted import runs

LOADED = (plt.figure, transformers.GPT2LMHeadModel, transformers.AutoTokenizer, curate)
"""What takes long to load, and so is there before anything is forked."""
RECIPE = "recipe.yaml"
PATIENCE = 120.0
"""Seconds after which a run is said to hang."""


class Found(NamedTuple):
    """What came of a fault, in words; nothing if all is well."""

    lost: str = ""
    wrong: str = ""


class Ended(NamedTuple):
    """How a process ended, negative if by a signal, and what it wrote to stdout and stderr."""

    code: int
    out: str
    said: str


Fault = Callable[[Path], Found]


def never() -> bool:
    """It is not to be killed."""
    return False


def apart(
    at: Path, do: Callable[[], int], *, until: Callable[[], bool] = never, room: int | None = None
) -> Ended:
    """Do something in a fork, in a folder; kill it as soon as `until` holds.

    room: bytes that any file may have from there on, as on a disk that is full.
    """
    pipes = [os.pipe(), os.pipe()]  # a file would have no room, either
    if (child := os.fork()) == 0:
        code = 70
        try:
            os.chdir(at)
            for number, (_, end) in enumerate(pipes, start=1):
                os.dup2(end, number)
            torch.set_num_threads(1)
            curate.pipeline.apply.ROWS = 200
            savepoints.SHARE = float("inf")  # one after every round: there is something to find
            if room is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
            code = do()
            sys.stdout.flush()
        except BaseException as error:
            os.write(2, f"Traceback: {error!r}".encode())
        finally:
            os._exit(code)
    for _, end in pipes:
        os.close(end)
    with ThreadPoolExecutor(2) as readers:
        texts = [readers.submit(_read, begin) for begin, _ in pipes]
        code = _watch(child, until)
        return Ended(code, *(text.result() for text in texts))


def _watch(child: int, until: Callable[[], bool]) -> int:
    """Wait for a process, or kill it in time; how it ended, negative if by a signal."""
    begin, killed = time.monotonic(), False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if not killed and (until() or time.monotonic() - begin > PATIENCE):
            os.kill(child, signal.SIGKILL)
            killed = True
        time.sleep(0.001)


def _read(pipe: int) -> str:
    with open(pipe, encoding="utf-8", errors="replace") as file:
        return file.read()


def done(do: Callable[[], object]) -> int:
    """Do it, for exit code 0."""
    do()
    return 0


def command(*arguments: str) -> Callable[[], int]:
    """What runs `curate` with these arguments."""
    return lambda: run(cli, [*arguments])


def resumed(*settings: str) -> Callable[[], int]:
    """What runs the recipe to `out`, or goes on with it."""
    overrides = [part for setting in settings for part in ("--set", setting)]
    return command("select", RECIPE, "--out", "out", "--quiet", "--resume", *overrides)


def applied() -> Callable[[], int]:
    """What scores further rows to `out`, or goes on with it."""
    return command("apply", "kept", "further.parquet", "--out", "out", "--quiet", "--resume")


def outcome_of(at: Path) -> dict[str, str]:
    """Hashes of what a run left, and what it measured; empty if it left nothing."""
    if (at / "weights").exists():  # of a loop
        return runs.outcome_of_loop(at)
    out = at / "out"
    paths = [out / "scores.parquet", *sorted(out.glob("train/*.arrow"))]
    if not (at / "kept").exists():
        paths.append(out / "windows.parquet")
    if not all(path.exists() for path in (*paths, out / "provenance.json")):
        return {}
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    made = json.loads((out / "provenance.json").read_text())
    left = {name: str((out / name).exists()) for name in ("report.html", "README.md")}
    measured = {name: json.dumps(made.get(name)) for name in ("worth", "evaluation", "missing")}
    return hashes | measured | left


def one_line(ended: Ended) -> str:
    """What is wrong with how a failure is told, if anything."""
    if "Traceback" in ended.said or ended.said.strip().count("\n"):  # click ends a line first
        return f"not told in one line: {ended.said[-300:]!r}"
    return ""


class Bench:
    """A folder for faults, and by name of their data: what is right, and how long that takes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.right: dict[str, dict[str, str]] = {}
        self.seconds: dict[str, float] = {}
        self.number = 0

    def start(self, name: str) -> Callable[[], int]:
        """What a run of that name is."""
        return {"loop": runs.loop, "further": applied()}.get(name, resumed())

    def fresh(self, name: str) -> Path:
        """A new folder with the data of that name, which was run once undisturbed."""
        whole = self.folder / f"whole-{name}"
        if not whole.exists():
            whole.mkdir()
            self._must(apart(whole, lambda: runs.MAKE[name]() or 0))
            shutil.copytree(whole, self.folder / f"data-{name}")
            self._must(apart(whole, self.start(name)))
            again = shutil.copytree(self.folder / f"data-{name}", self.folder / f"again-{name}")
            begin = time.monotonic()
            self._must(apart(again, self.start(name)))
            self.seconds[name] = time.monotonic() - begin
            self.right[name] = outcome_of(whole)
            assert self.right[name] == outcome_of(again), "two undisturbed runs differ"
        self.number += 1
        at = self.folder / f"fault-{self.number}"
        return Path(shutil.copytree(self.folder / f"data-{name}", at))

    def judge(self, name: str, at: Path, start: Callable[[], int] | None = None) -> Found:
        """Go on with a run after a fault: it must come to what is right, and leave nothing over."""
        ended = apart(at, start or self.start(name))
        if ended.code:
            return Found(f"it cannot be gone on with: {ended.said[-300:]}")
        found = outcome_of(at)
        if not found:
            return Found("there is no result")
        other = [key for key in self.right[name] if found.get(key) != self.right[name][key]]
        left = [path.name for path in at.glob(".*") if path.name.endswith(".unfinished")]
        return Found("", f"another result: {other}" if other else "left over" if left else "")

    def _must(self, ended: Ended) -> None:
        if ended.code:
            raise SystemExit(f"an undisturbed run failed: {ended.said}")
