"""Two processes find what one finds, and fail together.

Both go through all that is tested here once, see `worker`; the tests look at what they left.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from torch import Tensor

from curate.cli.main import main
from curate.rules import State
from curate.runtime.ranks import ALONE, require_same, share
from curate.trajectory import shard_bytes
from tests.job import RECIPE, curate, rows
from tests.runtime.ranks.cases import ADAMW, CASES, T
from tests.runtime.ranks.worker import ALIKE, FAILURES, SIZE

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path]),
}
PATIENCE = 300


@dataclass(frozen=True)
class Left:
    """What the two processes left: tensors by case, ends of commands by name, files."""

    tensors: list[dict[str, Tensor]]
    ends: list[dict[str, Any]]
    folder: Path

    def case(self, name: str, rank: int = 0) -> dict[str, Tensor]:
        start = f"{name}/"
        return {
            key.removeprefix(start): value
            for key, value in self.tensors[rank].items()
            if key.startswith(start)
        }


def worker(rank: int, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.runtime.ranks.worker", str(rank), str(folder)],
        cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("ranks")
    rows().to_parquet(str(folder / "rows.parquet"))
    (folder / "recipe.yaml").write_text(RECIPE)
    processes = [worker(rank, folder) for rank in range(SIZE)]
    try:
        errors = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 9], errors  # 1 is killed at last
    return Left(
        [load_file(folder / f"{rank}.safetensors") for rank in range(SIZE)],
        [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)],
        folder,
    )


@pytest.mark.parametrize("name", CASES)
def test_two_processes_find_what_one_finds(left: Left, name: str) -> None:
    alone, together = CASES[name](ALONE), left.case(name)
    # sums over ranks round otherwise, and a difference of gradients divides that by its step
    kind = name.rpartition(", ")[2]
    exact = {"float32": 1e-5, "bfloat16": 2e-2}.get(kind, 1e-12)
    by_differences = {"float32": 2e-3, "bfloat16": 2e-2}.get(kind, 1e-7)
    assert alone.keys() == together.keys()
    assert alone["influences"].abs().max() > 0
    for key, expected in alone.items():
        rtol = exact if key in ("sizes", "losses", "target losses", "final") else by_differences
        if key in ("errors", "probes"):  # what is left of differences of losses, too
            rtol = max(rtol, 1e-2 if name.endswith("float32") else 1e-6)
        scale = float(expected.abs().max())
        torch.testing.assert_close(together[key], expected, rtol=rtol, atol=rtol * scale)


def test_all_ranks_have_the_same_bits(left: Left) -> None:
    first, second = left.tensors
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sharding_changes_no_bit(left: Left) -> None:
    whole, sharded = left.case("on disk"), left.case("whole on disk")
    assert all(torch.equal(whole[key], sharded[key]) for key in whole)


def test_dropout_is_the_same_again_where_a_micro_batch_is_cut(left: Left) -> None:
    """But not that of one process: who shares a forward pass decides where it falls."""
    one, again = left.case("uneven dropout").values()
    assert torch.equal(one, again)
    alone = ADAMW(ALONE, dropout=0.4, micro=0)["influences"]
    assert not torch.allclose(one, alone, rtol=1e-3)


def test_a_file_damaged_on_one_rank_is_used_on_none(left: Left) -> None:
    alone = ADAMW(ALONE, snapshots=T)["influences"]
    found = left.case("damaged")["influences"]
    torch.testing.assert_close(found, alone, rtol=1e-7, atol=1e-7 * float(alone.abs().max()))
    told = [own["warnings"] for own in left.ends]
    assert told[0] == []
    assert len(told[1]) == 1
    assert "missing or damaged" in told[1][0]


@pytest.mark.parametrize("name", ["good", "sharded"])
def test_the_dataset_is_that_of_one_process(
    left: Left, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(left.folder)
    assert curate("recipe.yaml", "--out", "alone", "--overwrite", "--quiet") == 0
    assert [ends[name]["code"] for ends in left.ends] == [0, 0]
    assert [ends[name]["err"] for ends in left.ends] == ["", ""]
    assert "(10 steps, cpu, 2 processes)" in left.ends[0][name]["out"]
    assert left.ends[1][name]["out"] == ""
    one, two = load_from_disk("alone")["train"], load_from_disk(name)["train"]
    assert one.to_list() == two.to_list()
    expected, found = (
        pl.read_parquet(f"{out}/scores.parquet").sort("row") for out in ("alone", name)
    )
    assert expected["kept"].equals(found["kept"])
    scale = expected["influence"].abs().max()
    assert (expected["influence"] - found["influence"]).abs().max() <= 3e-5 * scale  # type: ignore[operator]
    # of all the runs, only the one that could not write has something to go on from
    assert [path.name for path in left.folder.glob(".*")] == [".writing.unfinished"]


def test_a_plan_says_what_each_process_holds(
    left: Left, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(left.folder)
    assert curate(*ALIKE["plan"][1:]) == 0
    alone, together = json.loads(capsys.readouterr().out), json.loads(left.ends[0]["plan"]["out"])
    assert left.ends[1]["plan"]["out"] == ""
    assert (alone["processes"], together["processes"]) == (1, 2)
    parameters, state = 4 * 58, 3 * 4 * 58  # AdamW, 2 KiB: 2 whole states or 4 halves
    assert alone["memory"]["snapshots"] == (2 + 2) * state
    assert together["memory"]["snapshots"] == 4 * state // 2 + 4 * state
    assert alone["memory"]["parameters"] == together["memory"]["parameters"] == parameters
    assert together["memory"]["graph"] < alone["memory"]["graph"]
    assert alone["passes"]["record"] == together["passes"]["record"]
    assert alone["passes"]["redo"] > together["passes"]["redo"]


CODES = {
    "usage": (2, "No such option"),
    "recipe": (2, "selection.horizon: must be at least 1 but got 0"),
    "nan": (1, "lower the learning rate"),
    "tune": (2, "start it several times with the same --out, and they share the work."),
    "verify": (2, "start it without torchrun."),
    "other": (2, "the 2 processes do not have the same recipe and data"),
    "loading": (2, "gone.parquet: no such file."),
    "loading on 0": (2, "gone.parquet: no such file."),
    "step": (1, "RuntimeError: out of memory"),
    "scoring": (1, "RuntimeError: out of memory"),
    "interrupt": (130, "interrupted; no result was written."),
    "interrupt on 0": (130, "interrupted; no result was written."),
    "stopped": (130, "no result was written. Go on with the same and --resume."),
    "writing": (2, "writing: cannot be written: No space left"),
    "killed": (1, "process 0 of 2 lost the others, one of which may have been killed"),
}


@pytest.mark.parametrize("name", CODES)
def test_processes_fail_together_and_one_says_why(left: Left, name: str) -> None:
    code, message = CODES[name]
    ends = [own[name] for own in left.ends if name in own]
    assert len(ends) == (1 if name == "killed" else 2)
    assert [own["code"] for own in ends] == [code] * len(ends)
    said = [line for own in ends for line in own["err"].splitlines() if line.strip()]
    assert sum(message in line for line in said) == 1, said
    if name != "usage":
        assert len(said) == 1
        assert said[0].startswith("curate: ")
    assert not (left.folder / name.replace(" ", "-")).exists() or name == "stopped"  # and resumed
    if name in FAILURES and code != 130:  # the rank that failed is the one that says why
        which = FAILURES[name][1]
        assert name == "killed" or message in left.ends[which][name]["err"]


def test_what_was_interrupted_goes_on_and_comes_to_the_same(left: Left) -> None:
    for own in left.ends:
        assert own["resumed"]["code"] == 0, own
    assert (
        "resuming from .stopped.unfinished: scores by look_ahead" in left.ends[0]["resumed"]["err"]
    )
    made = json.loads((left.folder / "stopped/provenance.json").read_text())
    assert made["resumed"]
    assert not (left.folder / ".stopped.unfinished").exists()
    found, good = ((left.folder / f"{out}/scores.parquet") for out in ("stopped", "good"))
    assert found.read_bytes() == good.read_bytes()


def test_help_is_printed_once(left: Left) -> None:
    assert "Usage" in left.ends[0]["help"]["out"]
    assert left.ends[1]["help"] == {"code": 0, "out": "", "err": ""}


def torchrun(here: Path, *arguments: str) -> subprocess.Popen[str]:
    command = ["torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "curate"]
    return subprocess.Popen(
        [sys.executable, "-m", *command, *arguments],
        cwd=here, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_torchrun_selects(here: Path) -> None:
    process = torchrun(here, "select", "recipe.yaml", "--json")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert json.loads(out)["processes"] == 2
    assert "curate" not in err
    assert (here / "out/recipe/scores.parquet").is_file()


LEAVING = """
import sys
from pathlib import Path
import torch
from torch import distributed as dist
from curate.runtime.ranks import Group

def threads():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return names.count("pt_gloo_runloop")

group = Group(dist.FileStore(sys.argv[1]), 0, 1)
torch.held = lambda of=dist.group.WORLD: of  # as torch.distributed.nn does
for _ in range(3):
    group.sum(torch.ones(3))
while (before := threads()) % 2:  # one that has begun but has no name yet
    pass
group.close()
print(before, threads())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are listed in /proc")
def test_who_leaves_has_no_thread_that_holds_tensors(tmp_path: Path) -> None:
    """One that drops a tensor while the interpreter ends would abort the process."""
    command = [sys.executable, "-c", LEAVING, str(tmp_path / "store")]
    out = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    before, after = map(int, out.stdout.split())
    assert before > 0
    assert after == before // 2  # the world's, which have had nothing to do


def test_ctrl_c_in_torchrun_is_told_once(here: Path) -> None:
    long = ("--set", "training.epochs=3000", "--set", "evaluation={seeds: [0]}")
    process = torchrun(here, "select", "recipe.yaml", *long)
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        while "this will take about" not in line:
            assert line, "it ended"
            line = process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.communicate()
    assert err.count("curate: ") == 1
    assert "curate: interrupted; no result was written." in err
    assert not (here / "out/recipe").exists()


def test_a_group_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    try:
        with pytest.raises(SystemExit, match="2"):
            main()
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), handlers, strict=True):
            signal.signal(number, handler)
    assert "WORLD_SIZE is 2 but RANK is not set; start" in capsys.readouterr().err


def test_a_world_of_one_is_one_process(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(sys, "argv", ["curate", "tune", "gone.yaml"])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="2"):
        main()
    signal.signal(signal.SIGTERM, handler)
    assert "gone.yaml: cannot read the recipe" in capsys.readouterr().err


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 12])
def test_shares_are_even_and_leave_nothing_out(count: int, size: int) -> None:
    shares = [share(count, rank, size) for rank in range(size)]
    assert [i for own in shares for i in range(count)[own]] == list(range(count))
    lengths = [own.stop - own.start for own in shares]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


def test_one_process_agrees_with_itself() -> None:
    require_same(ALONE, "anything", "text")


def test_bytes_of_a_share_are_those_of_the_largest() -> None:
    @dataclass(frozen=True)
    class Three:
        rank: int = 0
        size: int = 3
        local: int = 0

    state = State(torch.zeros(7), {"one": torch.zeros(1), "none": torch.zeros(0)}, 0)
    assert shard_bytes(state, ALONE) == state.nbytes() == 32
    assert shard_bytes(state, Three()) == 4 * (3 + 1)  # type: ignore[arg-type]
