"""Two processes find what one finds, and fail together.

torchrun starts both, once, and they go through all that is tested here, see `worker`; the tests
look at what they left.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import polars as pl
import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from torch import Tensor

from curate.cli.main import main
from curate.pipeline.scorer import ARRAYS, FACTS
from curate.runtime.ranks import ALONE
from tests.job import RECIPE, curate, rows, sets
from tests.runtime.ranks.cases import ADAMW, CASES, T
from tests.runtime.ranks.worker import ALIKE, FAILURES, SIZE

ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *sys.path]),
}
PATIENCE = 300


@dataclass(frozen=True)
class Left:
    """What the two processes left: tensors by case, ends of commands by name, files.

    interrupted: what torchrun and they printed to stderr after Ctrl-C.
    """

    tensors: list[dict[str, Tensor]]
    ends: list[dict[str, Any]]
    folder: Path
    interrupted: str

    def case(self, name: str, rank: int = 0) -> dict[str, Tensor]:
        start = f"{name}/"
        return {
            key.removeprefix(start): value
            for key, value in self.tensors[rank].items()
            if key.startswith(start)
        }


def torchrun(folder: Path) -> str:
    """Have two workers do everything, and interrupt the last of it; what they say then."""
    command = ["torch.distributed.run", "--nproc-per-node", str(SIZE), "--standalone"]
    process = subprocess.Popen(
        [sys.executable, "-m", *command, "-m", "tests.runtime.ranks.worker", str(folder)],
        cwd=folder,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    watchdog = Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        lines = list[str]()
        while not lines or "this will take about" not in lines[-1]:
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        return process.communicate(timeout=PATIENCE)[1]
    finally:
        watchdog.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    folder = tmp_path_factory.mktemp("ranks")
    rows().to_parquet(str(folder / "rows.parquet"))
    (folder / "recipe.yaml").write_text(RECIPE)
    rows(240).to_parquet(str(folder / "more.parquet"))
    more = RECIPE.replace("rows.parquet", "more.parquet") + "score: {sample: 110}\n"
    (folder / "more.yaml").write_text(more)
    interrupted = torchrun(folder)
    codes = [json.loads((folder / f"{rank}.codes").read_text()) for rank in range(SIZE)]
    assert codes == [[0, 0], [0, 9]]  # 1 is killed at last
    return Left(
        [load_file(folder / f"{rank}.safetensors") for rank in range(SIZE)],
        [json.loads((folder / f"{rank}.json").read_text()) for rank in range(SIZE)],
        folder,
        interrupted,
    )


@pytest.fixture(scope="module")
def alone(left: Left) -> Path:
    """What one process selects by the same recipe."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(left.folder)
        assert curate("recipe.yaml", "--out", "alone", "--quiet") == 0
    return left.folder / "alone"


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
    told = [ends["warnings"] for ends in left.ends]
    assert told[0] == []
    assert len(told[1]) == 1
    assert "missing or damaged" in told[1][0]


def test_scores_are_predicted_as_by_one_process(
    left: Left, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [ends["sampled"]["code"] for ends in left.ends] == [0, 0]
    monkeypatch.chdir(left.folder)
    assert curate("more.yaml", "--out", "one", "--quiet", *sets("selection.rounds=1")) == 0
    one, two = (pl.read_parquet(f"{out}/scores.parquet").sort("row") for out in ("one", "sampled"))
    assert len(two) == 144
    assert one["kept"].equals(two["kept"])
    assert (one["score"] - two["score"]).abs().max() < 1e-3  # type: ignore[operator]
    assert {file.name for file in (left.folder / "sampled/predictor").iterdir()} == {FACTS, ARRAYS}


@pytest.mark.parametrize("name", ["good", "sharded"])
def test_the_dataset_is_that_of_one_process(left: Left, alone: Path, name: str) -> None:
    assert [ends[name]["code"] for ends in left.ends] == [0, 0]
    assert [ends[name]["err"] for ends in left.ends] == ["", ""]
    assert "(10 steps, cpu, 2 processes)" in left.ends[0][name]["out"]
    assert left.ends[1][name]["out"] == ""
    outs = (alone, left.folder / name)
    one, two = (load_from_disk(str(out))["train"] for out in outs)
    assert one.to_list() == two.to_list()
    expected, found = (pl.read_parquet(out / "scores.parquet").sort("row") for out in outs)
    assert expected["kept"].equals(found["kept"])
    scale = expected["influence"].abs().max()
    assert (expected["influence"] - found["influence"]).abs().max() <= 3e-5 * scale  # type: ignore[operator]
    # only the run that could not write has something to go on from, and the interrupted one may
    unfinished = {path.name for path in left.folder.glob(".*")} - {".long.unfinished"}
    assert unfinished == {".writing.unfinished"}


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
    "stopped": (130, "no result was written. To resume: the same and --resume."),
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


def test_torchrun_selects(left: Left) -> None:
    out, nothing = ((left.folder / f"selects-{rank}.out").read_text() for rank in range(SIZE))
    assert json.loads(out)["processes"] == SIZE
    assert nothing == ""
    for rank in range(SIZE):
        assert "curate" not in (left.folder / f"selects-{rank}.err").read_text()
    selected, good = (left.folder / f"{name}/scores.parquet" for name in ("selected", "good"))
    assert selected.read_bytes() == good.read_bytes()


def test_ctrl_c_in_torchrun_is_told_once(left: Left) -> None:
    assert left.interrupted.count("curate: ") == 1
    assert "curate: interrupted; no result was written." in left.interrupted
    assert not (left.folder / "long").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are listed in /proc")
def test_who_leaves_has_no_thread_that_holds_tensors(left: Left) -> None:
    """One that drops a tensor while the interpreter ends would abort the process."""
    for ends in left.ends:
        before, after = ends["threads"]
        assert before > 0
        assert after == before // 2  # the world's, which have had nothing to do


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
