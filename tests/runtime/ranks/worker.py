"""One of two processes that torchrun starts: see test_ranks.py.

`torchrun --nproc-per-node 2 -m tests.runtime.ranks.worker FOLDER`, in a directory with a recipe.
Selects as `curate` does; goes through all cases, then through failures, which leaves
RANK.safetensors and RANK.json in the folder; at last selects until it is interrupted. Each is in a
fork of its own, because loading everything takes longer than any of them.
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
from torch import distributed as dist
from torch.distributed import FileStore, PrefixStore, Store

from curate.cli.main import cli, run
from curate.cli.main import main as curate_main
from curate.errors import DataError
from curate.influence import window
from curate.pipeline import select as jobs
from curate.runtime.ranks import Group, group
from curate.trajectory import recording, snapshots
from tests.runtime.ranks.cases import ADAMW, CASES

SIZE = 2


@contextmanager
def after(calls: int, target: object, name: str, then: Callable[[], Any]) -> Iterator[None]:
    """Have the function `name` of `target` do something else after so many calls."""
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
    "sampled": [*["select", "more.yaml", "--out", "sampled", "--set", "selection.rounds=1"]],
    "plan": ["select", "recipe.yaml", "--plan", "--json", "--set", "trajectory.snapshots=2KiB"],
    "usage": ["select", "recipe.yaml", "--nonsense"],
    "recipe": ["select", "recipe.yaml", "--set", "selection.horizon=0"],
    "nan": ["select", "recipe.yaml", "--out", "nan", "--set", SGD],
    "tune": ["tune", "recipe.yaml"],
    "verify": ["verify", "recipe.yaml"],
    "help": ["--help"],
}


def in_a_child(do: Callable[[], object]) -> int:
    """Run something in a fork of this process, which has loaded everything; its exit code."""
    if (child := os.fork()) == 0:
        do()
        sys.exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def select_as_torchrun_does(folder: Path, rank: int) -> None:
    """`curate select`, with stdout and stderr in files."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"selects-{rank}.{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["curate", "select", "recipe.yaml", "--json", "--out", "selected"]
    curate_main()


def threads() -> int:
    """Threads of gloo, which hold tensors."""
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return names.count("pt_gloo_runloop")


def go_through_all(folder: Path, rank: int) -> None:
    def group_for(name: str) -> Group:
        return Group(FileStore(str(folder / f"store-{name}")), rank, SIZE)

    ranks = group_for("cases")
    dist.held = lambda of=dist.group.WORLD: of  # type: ignore[attr-defined] # as dist.nn does
    tensors = {
        f"{case}/{name}": tensor for case, go in CASES.items() for name, tensor in go(ranks).items()
    }
    uneven = [ADAMW(ranks, dropout=0.4, micro=0)["influences"] for _ in range(2)]
    tensors |= {"uneven dropout/1": uneven[0], "uneven dropout/2": uneven[1]}
    read, seen = snapshots._File.read, []

    def damaged_once(file: Any) -> Any:
        seen.append(file)
        return None if rank == 1 and len(seen) == 2 else read(file)

    with (
        warnings.catch_warnings(record=True) as told,
        patch.object(snapshots._File, "read", damaged_once),
    ):
        warnings.simplefilter("always")
        damaged = ADAMW(ranks, snapshots=1, disk=4, sharded=True)
    tensors["damaged/influences"] = damaged["influences"]
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / f"{rank}.safetensors")
    before = threads()
    ranks.close()
    ends: dict[str, Any] = {
        "warnings": [str(warning.message) for warning in told],
        "threads": [before, threads()],
    }

    def ending(name: str, arguments: list[str]) -> None:
        out, err, ranks = io.StringIO(), io.StringIO(), group_for(name)
        with redirect_stdout(out), redirect_stderr(err):
            code = run(cli, arguments, ranks)
        ranks.close(failed=code != 0)
        ends[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}
        (folder / f"{rank}.json").write_text(json.dumps(ends))

    jobs.leave_report = lambda *_: None  # type: ignore[assignment]
    for name, arguments in ALIKE.items():
        ending(name, arguments)
    ending("other", ["select", "recipe.yaml", "--set", f"training.seed={rank}"])
    for name, (arguments, which, calls, target, function, then) in FAILURES.items():
        line = ["select", "recipe.yaml", "--out", name.replace(" ", "-"), *arguments]
        with after(calls if rank == which else 10**9, target, function, then):
            ending(name, line)
        if name == "stopped":
            ending("resumed", ["select", "recipe.yaml", "--out", "stopped", "--resume"])


def select_for_long() -> None:
    """`curate select` until it is interrupted, in a group that is the second of its torchrun."""
    meet = group.rendezvous

    def meet_again(*arguments: Any, **options: Any) -> Iterator[tuple[Store, int, int]]:
        store, rank, size = next(iter(meet(*arguments, **options)))
        yield PrefixStore("again", store), rank, size

    group.rendezvous = meet_again
    long = ["training.epochs=3000", "evaluation={seeds: [0]}"]
    sys.argv = ["curate", "select", "recipe.yaml", "--out", "long"]
    sys.argv += [word for setting in long for word in ("--set", setting)]
    curate_main()


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    codes = [
        in_a_child(lambda: select_as_torchrun_does(folder, rank)),
        in_a_child(lambda: go_through_all(folder, rank)),
    ]
    (folder / f"{rank}.codes").write_text(json.dumps(codes))
    select_for_long()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
