"""Nothing lost: a selection that dies goes on where it was, and comes to the same, bit for bit."""

import hashlib
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from filelock import FileLock

from curate.cli.main import cli, run
from curate.cli.process import Terminated
from curate.pipeline import select as jobs
from curate.runtime import files, progress, savepoints
from curate.runtime.files import digest_of
from curate.runtime.resume import folder_of
from tests.job import RECIPE, curate, rows

RECIPE_WITH_EVALUATION = RECIPE + "evaluation: {seeds: [0, 1], against: [everything, loss]}\n"
SCORING, EVALUATING = 60, 150
"""Ticks of progress after which a run is in the second of its three windows; in retraining."""
ROOT = Path(__file__).parents[2]
Damage = Callable[[Path], object]


def outcome(out: Path | str) -> dict[str, str]:
    """Hashes of what a run wrote, and what it measured."""
    out = Path(out)
    names = [str(shard.relative_to(out)) for shard in out.glob("train/*.arrow")]
    found = {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in ("scores.parquet", "windows.parquet", "recipe.yaml", *names)
    }
    made = json.loads((out / "provenance.json").read_text())
    return found | {name: json.dumps(made[name]) for name in ("evaluation", "error", "noise")}


def stop(out: str, ticks: int, error: BaseException, *options: str) -> int:
    """Run until an error after so many steps, as the progress bar counts them."""
    left = iter(range(1, ticks))

    class Counted(progress.tqdm):  # type: ignore[misc]
        def update(self, *given: Any) -> None:
            if next(left, None) is None:
                raise error
            super().update(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "tqdm", Counted)
        patch.setattr(savepoints, "SHARE", float("inf"))  # one after every round
        return curate("recipe.yaml", "--out", out, "--quiet", *options)


def resume(out: str, *options: str) -> int:
    return curate("recipe.yaml", "--out", out, "--quiet", "--resume", *options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a recipe, what a run wrote that was never stopped, and what others left that were."""
    folder = tmp_path_factory.mktemp("place")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rows().to_parquet("rows.parquet")
        Path("recipe.yaml").write_text(RECIPE_WITH_EVALUATION)
        assert curate("recipe.yaml", "--out", "whole", "--quiet") == 0
        assert not folder_of(Path("whole")).exists()
        for ticks in (SCORING, EVALUATING):
            assert stop(f"left-{ticks}", ticks, KeyboardInterrupt()) == 130
    return folder


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, str]:
    return outcome(place / "whole")


@pytest.fixture
def out(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An output of one's own, in the same place; nothing there."""
    monkeypatch.chdir(place)
    return tmp_path.name


@pytest.fixture
def stopped(out: str) -> Path:
    """What a run left that was interrupted in scoring."""
    return shutil.copytree(folder_of(Path(f"left-{SCORING}")), folder_of(Path(out)))


KILLED = (
    "in_a_step:3", "in_a_step:45", "in_a_step:100", "in_a_step:150",
    "within_a_savepoint:4", "after_a_savepoint:5", "within_a_line:2", "within_the_dataset:1",
    "in_clearing_up:1",
)  # fmt: skip


@pytest.fixture(scope="module")
def dead(place: Path) -> None:
    """Runs that were killed by SIGKILL, each by the name of its moment."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.runtime.killed", *[",".join(KILLED)] * 2, "recipe.yaml"],
        capture_output=True, text=True, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert json.loads(done.stdout) == dict.fromkeys(KILLED, -signal.SIGKILL), done.stderr


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize("moment", KILLED)
def test_killed_at_any_moment_it_goes_on_and_comes_to_the_same(
    place: Path, whole: dict[str, str], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert Path(moment).exists() == moment.startswith("in_clearing_up")
    assert folder_of(Path(moment)).exists()
    assert resume(moment) == 0
    assert outcome(moment) == whole
    assert not folder_of(Path(moment)).exists()


def newest(folder: Path) -> list[Path]:
    """The savepoints of scoring, the newest first."""
    return sorted(folder.glob("score-look_ahead/*.safetensors"), reverse=True)


def flip(path: Path, where: float = 0.5) -> None:
    """One bit of a byte."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def swap(folder: Path) -> None:
    one, other = newest(folder)
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def from_another_run(folder: Path) -> None:
    saved = files.read_sealed(newest(folder)[0])
    files.write_sealed(newest(folder)[0], saved | {"run": "another"})


def another_kind(folder: Path) -> None:
    files.write_sealed(newest(folder)[0], [1, 2, 3])


def foreign(folder: Path) -> None:
    shutil.copy(folder.parent / "rows.parquet", newest(folder)[0])


def each(damage: Damage) -> Damage:
    return lambda folder: [damage(path) for path in newest(folder)]


def first(damage: Damage) -> Damage:
    return lambda folder: damage(newest(folder)[0])


@pytest.mark.parametrize(
    ("damage", "warned"),
    [
        pytest.param(first(truncate), ["cannot be read"], id="cut short"),
        pytest.param(first(lambda p: p.write_bytes(b"")), ["cannot be read"], id="empty"),
        pytest.param(first(lambda p: flip(p, 0.9)), ["is damaged"], id="a bit of its numbers"),
        pytest.param(first(lambda p: flip(p, 0.001)), ["cannot be read"], id="of its header"),
        pytest.param(first(Path.unlink), [], id="gone"),
        pytest.param(foreign, ["cannot be read"], id="a file of something else"),
        pytest.param(another_kind, ["is another run's"], id="a sealed file of something else"),
        pytest.param(from_another_run, ["is another run's"], id="of another run"),
        pytest.param(swap, ["is not what its name says"] * 2, id="two swapped"),
        pytest.param(each(flip), ["is damaged"] * 2, id="both damaged"),
        pytest.param(each(Path.unlink), [], id="both gone"),
        pytest.param(
            lambda folder: (folder / "run.json").unlink(),
            ["is another run's"] * 2,
            id="no identity",
        ),
        pytest.param(
            lambda folder: (folder / ".half").write_text("what the dead left"), [], id="leftovers"
        ),
    ],
)
def test_a_damaged_savepoint_is_found_and_what_it_held_is_computed_again(
    out: str, stopped: Path, whole: dict[str, str], damage: Damage, warned: list[str]
) -> None:
    damage(stopped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert resume(out) == 0
    assert [str(one.message).split(";")[0].split("safetensors ")[1] for one in caught] == warned
    assert outcome(out) == whole


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda lines: [*lines[:-1], lines[-1][:-5]], id="cut short"),
        pytest.param(
            lambda lines: [lines[0], lines[1].replace("0.", "1.", 1), *lines[2:]], id="bit"
        ),
        pytest.param(lambda lines: lines[1:], id="its name gone"),
        pytest.param(lambda lines: [], id="empty"),
        pytest.param(lambda lines: [lines[0], "\x00\xff", "{}", "[1]", *lines[1:]], id="rubbish"),
    ],
)
def test_a_damaged_journal_is_found_and_measured_again(
    out: str, whole: dict[str, str], damage: Callable[[list[str]], list[str]]
) -> None:
    folder = shutil.copytree(folder_of(Path(f"left-{EVALUATING}")), folder_of(Path(out)))
    path = folder / "evaluation.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 4
    path.write_text("\n".join(damage(lines)))
    assert resume(out) == 0
    assert outcome(out) == whole


def test_what_was_evaluated_is_not_evaluated_again(
    out: str, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from curate.pipeline import evaluate
    from curate.selection import judge as windows

    shutil.copytree(folder_of(Path(f"left-{EVALUATING}")), folder_of(Path(out)))
    seeds, retrain = [], evaluate.retrain
    monkeypatch.setattr(evaluate, "retrain", lambda *a: (seeds.append(a[2]), retrain(*a))[1])
    monkeypatch.setattr(windows, "record", None)  # no window is gone through
    assert resume(out) == 0
    assert seeds == [0, 1]  # of the third way
    assert outcome(out) == whole


def edit(folder: Path, **changes: Any) -> None:
    """Change `run.json`, under a checksum of its own."""
    plain = json.loads((folder / "run.json").read_text()) | changes
    del plain["checksum"]
    (folder / "run.json").write_text(json.dumps({"checksum": digest_of(plain)} | plain))


def made_of(folder: Path, **changes: Any) -> None:
    edit(folder, **{"made of": json.loads((folder / "run.json").read_text())["made of"] | changes})


def not_ours(folder: Path) -> None:
    (folder / "run.json").unlink()
    (folder / "mine").touch()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.epochs=3", "recipe is another: training.epochs 2 -> 3;"),
        ("selection.keep={count: 5}", "another: selection.keep.count null -> 5 (and 1 more);"),
        ("evaluation.seeds=[0, 2]", "another: evaluation.seeds.1 1 -> 2;"),
        ("data.label_noise.seed=3", "another: data.label_noise.seed 0 -> 3;"),
    ],
)
def test_another_recipe_is_refused_with_what_changed(
    out: str, stopped: Path, setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resume(out, "--set", setting) == 2
    assert message in capsys.readouterr().err
    assert newest(stopped)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: made_of(f, threads=2), "another number of threads: 2 -> 1 (OMP_NUM_THREADS"),
        (lambda f: made_of(f, device="cuda"), 'on another device: "cuda" -> "cpu"'),
        (lambda f: made_of(f, versions={"torch": "1.0"}), "versions are others: python null -> "),
        (lambda f: made_of(f, **{"first losses": "0"}), "now give other losses in the first step"),
        (lambda f: edit(f, format=2), "run.json: is of format 2 and this curate knows 1"),
        (lambda f: flip(f / "run.json"), "run.json: is damaged"),
        (lambda f: truncate(f / "run.json"), "run.json: is damaged"),
        (lambda f: (f / "run.json").write_text(""), "run.json: is damaged"),
        (lambda f: (f / "run.json").write_text("[1]"), "run.json: is damaged"),
        (not_ours, "was not written by curate, so it is left alone"),
    ],
    ids=[
        "threads", "device", "versions", "code", "newer", "bit", "cut short", "empty", "a list",
        "somebody else's",
    ],
)  # fmt: skip
def test_what_is_not_of_this_run_is_refused_and_left_as_it_is(
    out: str, stopped: Path, damage: Damage, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(stopped)
    before = {path: path.read_bytes() for path in stopped.rglob("*.*")}
    assert resume(out) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in stopped.rglob("*.*")} == before
    assert not Path(out).exists()


def test_changed_data_is_refused_by_its_name_and_touched_data_is_not(
    place: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE_WITH_EVALUATION)
    folder = shutil.copytree(folder_of(place / f"left-{SCORING}"), folder_of(Path("out")))
    table = pl.read_parquet(place / "rows.parquet")
    changed = table.with_columns(pl.col("note").str.replace("^row 7$", "row seven"))
    for other, what in (
        (changed, "fingerprint: has changed"),
        (table[:-1], "rows: has changed: 120"),
    ):
        other.write_parquet("rows.parquet")
        assert resume("out") == 2
        assert f"rows.parquet {what}" in capsys.readouterr().err
    shutil.copy(place / "rows.parquet", "rows.parquet")  # at another time
    assert folder.exists()
    assert resume("out") == 0
    assert outcome("out") == whole


def test_left_alone_it_is_in_the_way_and_either_way_goes_on(
    out: str, stopped: Path, whole: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert curate("recipe.yaml", "--out", out) == 2
    assert capsys.readouterr().err == (
        f"curate: {out}: a run that was not finished is in {stopped.name} (scores by look_ahead); "
        "--resume goes on with it, --overwrite starts again.\n"
    )
    assert curate("recipe.yaml", "--out", out, "--quiet", "--overwrite") == 0
    assert outcome(out) == whole
    assert not stopped.exists()


def test_what_is_finished_is_not_done_again(
    place: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(place)
    monkeypatch.setattr(jobs, "choose", None)
    assert curate("recipe.yaml", "--out", "whole", "--resume") == 0
    assert "rows: 36 of 72 kept" in capsys.readouterr().out
    assert outcome("whole") == whole
    assert curate("recipe.yaml", "--out", "whole", "--resume", "--set", "training.seed=1") == 2
    assert "exists already" in capsys.readouterr().err
    assert not folder_of(Path("whole")).exists()


def test_resume_where_nothing_was_left_begins(out: str, whole: dict[str, str]) -> None:
    assert resume(f"deep/{out}") == 0
    assert outcome(f"deep/{out}") == whole


def test_a_second_process_is_kept_out(
    out: str, stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(stopped.rglob("*"))
    with FileLock(stopped / "lock"):
        for option in ("--resume", "--overwrite", "--quiet"):
            assert curate("recipe.yaml", "--out", out, option) == 2
            assert "another process is writing it" in capsys.readouterr().err
    assert sorted(stopped.rglob("*")) == before


@pytest.mark.parametrize(
    ("error", "code", "word"),
    [
        (KeyboardInterrupt(), 130, "interrupted; no result"),
        (Terminated(), 143, "told to end; no result"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (RuntimeError("CUDA out of memory. Tried"), 1, "smaller training.micro_batch"),
        (MemoryError(), 1, "MemoryError"),
    ],
    ids=["Ctrl-C", "SIGTERM", "disk", "memory of a GPU", "memory"],
)
def test_an_end_before_time_says_how_to_go_on(
    out: str, whole: dict[str, str], error: BaseException, code: int, word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = ("--set", "selection.horizon=4", "--device", "cpu")
    assert stop(out, SCORING, error, *settings) == code
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0
    assert word in said
    command = said.split("`")[1].split(" select ")[1]
    assert (
        command
        == f"recipe.yaml --out {out} --set selection.horizon=4 --device cpu --quiet --resume"
    )
    assert not Path(out).exists()
    assert run(cli, ["select", *shlex.split(command)]) == 0
    assert outcome(out) == whole


def test_a_run_that_would_fail_again_is_not_kept(
    out: str, capsys: pytest.CaptureFixture[str]
) -> None:
    steep = "training={epochs: 2, batch_size: 16, optimizer: {kind: sgd, lr: 3e3, momentum: 0.9}}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(savepoints, "SHARE", float("inf"))
        assert curate("recipe.yaml", "--out", out, "--set", steep) == 1
    said = capsys.readouterr().err
    assert re.search(r"step \d+: the loss of row|parameter .* is no longer finite", said), said
    assert "--resume" not in said
    assert not folder_of(Path(out)).exists()


def test_a_full_disk_ends_a_savepoint_and_the_one_before_is_still_good(
    out: str, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Real writes that fail half-way: files may grow to so many bytes only."""
    monkeypatch.setattr(savepoints, "SHARE", float("inf"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (11_500, before[1]))
    try:
        code = curate("recipe.yaml", "--out", out, "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 1
    said = capsys.readouterr().err
    assert "cannot be written" in said
    assert "--resume`" in said
    assert said.count("\n") == 1
    assert newest(folder_of(Path(out)))
    assert not list(folder_of(Path(out)).rglob(".*"))
    assert resume(out) == 0
    assert outcome(out) == whole


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_computed(
    out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "prepare", None)
    Path(f"{out}.file").touch()
    assert curate("recipe.yaml", "--out", f"{out}.file/out") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_savepoints_take_no_more_of_the_time_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of our own: each takes 1 s to write, and one is offered every second."""
    now = [0.0]
    monkeypatch.setattr(savepoints.time, "monotonic", lambda: now[0])

    def write(path: Path, tree: Any) -> None:
        path.touch()
        now[0] += 1

    monkeypatch.setattr(savepoints, "write_sealed", write)
    points, written = savepoints.Savepoints(tmp_path / "scores", "a run"), []
    for _ in range(1000):
        now[0] += 1
        points.offer(lambda: written.append(now[0]))
    assert len(list((tmp_path / "scores").iterdir())) == 2
    assert len(written) == pytest.approx(savepoints.SHARE * now[0], rel=0.1)
