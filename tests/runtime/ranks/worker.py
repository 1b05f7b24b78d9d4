"""One of two processes: goes through all cases, then through failures. See test_ranks.py.

`python -m tests.runtime.ranks.worker RANK FOLDER`, in a directory with a recipe; leaves
RANK.safetensors and RANK.json in the folder.
"""

import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from safetensors.torch import save_file
from torch.distributed import FileStore

from curate.cli.main import cli, run
from curate.errors import DataError
from curate.influence import window
from curate.pipeline import select as jobs
from curate.runtime.ranks import Group
from curate.trajectory import recording, snapshots
from tests.runtime.ranks.cases import ADAMW, CASES

SIZE = 2


@contextmanager
def after(calls: int, target: object, name: str, then: Callable[[], Any]) -> Iterator[None]:
    """The function `name` of `target` does something else from its so manieth call on."""
    before, count = getattr(target, name), 0

    def counting(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return then() if count > calls else before(*arguments, **options)

    with patch.object(target, name, counting):
        yield


def raising(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


SGD = "training.optimizer={kind: sgd, lr: 1e6}"
STEP = (recording, "forward_step")
FAILURES: dict[str, tuple[list[str], int, int, Any, str, Callable[[], Any]]] = {
    # arguments, which rank fails, after how many calls, of what, how
    "loading": ([], 1, 0, jobs, "prepare", raising(DataError("gone.parquet: no such file."))),
    "loading on 0": ([], 0, 0, jobs, "prepare", raising(DataError("gone.parquet: no such file."))),
    "step": ([], 1, 5, *STEP, raising(RuntimeError("out of memory"))),
    "scoring": ([], 1, 2, window, "backward_step", raising(RuntimeError("out of memory"))),
    "interrupt": ([], 1, 5, *STEP, raising(KeyboardInterrupt())),
    "interrupt on 0": ([], 0, 5, *STEP, raising(KeyboardInterrupt())),
    "stopped": (["--quiet"], 1, 25, *STEP, raising(KeyboardInterrupt())),
    "writing": ([], 0, 0, jobs, "write_selection", raising(OSError(28, "No space left"))),
    "killed": ([], 1, 5, *STEP, lambda: os._exit(9)),
}
ALIKE = {
    "good": ["select", "recipe.yaml", "--out", "good"],
    "sharded": ["select", "recipe.yaml", "--out", "sharded", "--set", "trajectory.snapshots=2"],
    "plan": ["select", "recipe.yaml", "--plan", "--json", "--set", "trajectory.snapshots=2KiB"],
    "usage": ["select", "recipe.yaml", "--nonsense"],
    "recipe": ["select", "recipe.yaml", "--set", "selection.horizon=0"],
    "nan": ["select", "recipe.yaml", "--out", "nan", "--set", SGD],
    "tune": ["tune", "recipe.yaml"],
    "verify": ["verify", "recipe.yaml"],
    "help": ["--help"],
}


def main(rank: int, folder: Path) -> None:
    def group(name: str) -> Group:
        return Group(FileStore(str(folder / f"store-{name}")), rank, SIZE)

    ranks = group("cases")
    found = {
        f"{case}/{name}": tensor for case, go in CASES.items() for name, tensor in go(ranks).items()
    }
    uneven = [ADAMW(ranks, dropout=0.4, micro=0)["influences"] for _ in range(2)]
    found |= {"uneven dropout/1": uneven[0], "uneven dropout/2": uneven[1]}
    read, seen = snapshots._File.read, []

    def damaged_once(file: Any) -> Any:
        seen.append(file)
        return None if rank == 1 and len(seen) == 2 else read(file)

    with (
        warnings.catch_warnings(record=True) as told,
        patch.object(snapshots._File, "read", damaged_once),
    ):
        warnings.simplefilter("always")
        found["damaged/influences"] = ADAMW(ranks, snapshots=1, disk=4, sharded=True)["influences"]
    save_file({name: t.contiguous() for name, t in found.items()}, folder / f"{rank}.safetensors")
    ranks.close()

    ends: dict[str, Any] = {"warnings": [str(own.message) for own in told]}

    def ending(name: str, arguments: list[str]) -> None:
        out, err, own = io.StringIO(), io.StringIO(), group(name)
        with redirect_stdout(out), redirect_stderr(err):
            code = run(cli, arguments, own)
        own.close(failed=code != 0)
        ends[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        (folder / f"{rank}.json").write_text(json.dumps(ends))

    for name, arguments in ALIKE.items():
        ending(name, arguments)
    ending("other", ["select", "recipe.yaml", "--set", f"training.seed={rank}"])
    for name, (arguments, which, calls, target, function, then) in FAILURES.items():
        line = ["select", "recipe.yaml", "--out", name.replace(" ", "-"), *arguments]
        with after(calls if rank == which else 10**9, target, function, then):
            ending(name, line)
        if name == "stopped":
            ending("resumed", ["select", "recipe.yaml", "--out", "stopped", "--resume"])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
