"""A selection that dies resumes where it was, and comes to the same, bit for bit."""

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from filelock import FileLock

from curate.cli.main import cli, run
from curate.cli.process import Terminated
from curate.errors import OutputError
from curate.pipeline import select as jobs
from curate.runtime import progress, savepoints
from curate.runtime.files import digest_of
from curate.runtime.resume import MARK, Unfinished, changes, folder_of, has_progress, staged
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
    hashes = {
        name: hashlib.sha256((out / name).read_bytes()).hexdigest()
        for name in ("scores.parquet", "windows.parquet", "recipe.yaml", *names)
    }
    made = json.loads((out / "provenance.json").read_text())
    return hashes | {name: json.dumps(made[name]) for name in ("evaluation", "error", "noise")}


def stop(out: str, ticks: int, error: BaseException, *options: str) -> int:
    """Run until an error after so many steps, as the progress bar counts them."""
    left = iter(range(1, ticks))

    class Counted(progress.Pace):
        def tick(self, count: int) -> float | None:
            if next(left, None) is None:
                raise error
            return super().tick(count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "Pace", Counted)
        patch.setattr(savepoints, "SHARE", float("inf"))  # one after every round
        return curate("recipe.yaml", "--out", out, "--quiet", *options)


def resume(out: str, *options: str) -> int:
    return curate("recipe.yaml", "--out", out, "--quiet", "--resume", *options)


KILLED = (
    "in_a_step:3",
    "in_a_step:45",
    "in_a_step:100",
    "in_a_step:150",
    "within_a_savepoint:4",
    "after_a_savepoint:5",
    "within_a_line:2",
    "within_the_dataset:1",
    "in_clearing_up:1",
)
AFTER_CHOOSING = ("in_a_step:100", "in_a_step:150", "within_a_line:2", "in_clearing_up:1")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and a recipe."""
    folder = tmp_path_factory.mktemp("place")
    rows().to_parquet(str(folder / "rows.parquet"))
    (folder / "recipe.yaml").write_text(RECIPE_WITH_EVALUATION)
    return folder


@pytest.fixture(scope="module")
def dying(start: Path) -> Iterator[subprocess.Popen[str]]:
    """A process whose runs kill themselves there, meanwhile."""
    command = [sys.executable, "-m", "tests.runtime.killed", *[",".join(KILLED)] * 2, "recipe.yaml"]
    process = subprocess.Popen(
        command,
        cwd=start,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(scope="module")
def place(start: Path, dying: subprocess.Popen[str]) -> Path:
    """The same folder, with what a run wrote that was never stopped, and what others left."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(start)
        assert curate("recipe.yaml", "--out", "whole", "--quiet") == 0
        assert not folder_of(Path("whole")).exists()
        for ticks in (SCORING, EVALUATING):
            assert stop(f"left-{ticks}", ticks, KeyboardInterrupt()) == 130
    return start


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, str]:
    return outcome(place / "whole")


@pytest.fixture
def out(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an output in the same place; nothing is there."""
    monkeypatch.chdir(place)
    return tmp_path.name


@pytest.fixture
def stopped(out: str) -> Path:
    """What a run left that was interrupted in scoring."""
    return shutil.copytree(folder_of(Path(f"left-{SCORING}")), folder_of(Path(out)))


@pytest.fixture(scope="module")
def dead(dying: subprocess.Popen[str]) -> None:
    """Runs that were killed by SIGKILL, each by the name of its moment."""
    out, err = dying.communicate()
    assert json.loads(out) == dict.fromkeys(KILLED, -signal.SIGKILL), err


def test_changes_are_found_by_their_path() -> None:
    before = {"a": [1, {"b": 2}], "c": {"d": 3, "gone": None, "left": 4}, "e": [1, 2]}
    now = {"c": {"d": 5, "new": 6}, "a": (1, {"b": 2.5}), "e": [1]}
    assert changes(before, now) == [
        (("c", "d"), 3, 5),
        (("c", "new"), None, 6),
        (("c", "left"), 4, None),
        (("a", "1", "b"), 2, 2.5),
        (("e",), [1, 2], [1]),
    ]
    assert changes(now, now) == []
    assert changes({"a": (1, 2)}, {"a": [1, 2]}) == []


def test_a_stage_becomes_the_directory_or_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep/out"
    for text in ("first", "second"):
        with staged(out, overwrite=True) as stage:
            (stage / MARK).write_text(text)
            assert stage.parent == out.parent
            assert not out.exists() or (out / MARK).read_text() == "first"
    with pytest.raises(OutputError, match="Is a dir"), staged(out, overwrite=True) as stage:
        stage.write_text("third")
    assert (out / MARK).read_text() == "second"
    assert [*out.parent.iterdir()] == [out]
    assert out.stat().st_mode == out.parent.stat().st_mode


def test_a_stage_leaves_alone_what_curate_did_not_write(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for out, overwrite, message in (
        (tmp_path, False, "exists already; choose another --out or give --overwrite"),
        (tmp_path, True, "was not written by curate, so --overwrite leaves it alone"),
        (tmp_path / "link", True, "is a link; give what it leads to, nowhere, as --out"),
        (tmp_path / "mine/out", False, "cannot be written: File exists"),
        (tmp_path / ("n" * 256), False, "cannot be written: File name too long"),
        (Path("/"), True, "is no name for a new directory"),
        (tmp_path / "..", True, "is no name for a new directory"),
    ):
        with pytest.raises(OutputError, match=message), staged(out, overwrite=overwrite):
            pytest.fail("it is taken")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine"]


def test_a_name_as_long_as_a_file_system_takes_is_one(tmp_path: Path) -> None:
    for count in (250, 255):
        out = tmp_path / ("n" * count)
        with Unfinished(out, "recipe") as unfinished, unfinished.stage() as stage:
            (stage / MARK).touch()
        assert [path.name for path in tmp_path.iterdir()] == [out.name]
        shutil.rmtree(out)


@pytest.mark.parametrize("option", ["--resume", "--overwrite", "--quiet"])
@pytest.mark.parametrize("name", ["lock", "run.json", "thesis.txt", "score-look_ahead", ".git"])
def test_a_folder_that_is_ours_by_name_only_is_left_as_it_is(
    out: str, name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(Path(out))
    folder.mkdir()
    (folder / name).write_text("mine")
    assert curate("recipe.yaml", "--out", out, option) == 2
    assert "left alone; move it away" in capsys.readouterr().err.replace("the folder is ", "")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, "mine")]


@pytest.mark.parametrize("name", ["", "lock", "run.json", "evaluation.jsonl", "score-look_ahead"])
def test_nothing_is_written_through_a_link(
    out: str, stopped: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = Path(f"{out}.elsewhere")
    shutil.move(stopped / name, elsewhere) if (stopped / name).exists() else elsewhere.touch()
    (stopped / name).symlink_to(elsewhere.absolute())
    before = {path: path.is_file() and path.read_bytes() for path in elsewhere.rglob("*")}
    for option in ("--resume", "--overwrite"):
        assert curate("recipe.yaml", "--out", out, option) == 2
        assert "left alone; move it away" in capsys.readouterr().err
    after = {path: path.is_file() and path.read_bytes() for path in elsewhere.rglob("*")}
    assert after == before


def test_progress_is_told_in_words_and_a_folder_may_vanish_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_progress(tmp_path / "nowhere") is None
    (tmp_path / "evaluation.jsonl").write_text("its name\n")
    assert has_progress(tmp_path) is None
    (tmp_path / "evaluation.jsonl").write_text("its name\none\ntwo\n")
    (tmp_path / "score-loss").mkdir()
    (tmp_path / "score-loss/000001.safetensors").touch()
    assert has_progress(tmp_path) == "scores by loss, 2 retrainings"

    def remove(folder: Path, pattern: str) -> Iterator[Path]:
        shutil.rmtree(folder)
        yield from os.scandir(folder)  # type: ignore[misc]

    monkeypatch.setattr(Path, "glob", remove)
    assert has_progress(tmp_path) is None


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize("moment", KILLED)
def test_killed_at_any_moment_it_goes_on_and_comes_to_the_same(
    place: Path, whole: dict[str, str], moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    assert Path(moment).exists() == (moment in AFTER_CHOOSING)  # the rest is still to come
    assert not Path(moment).exists() or (Path(moment) / "train").is_dir()
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


def each(damage: Damage) -> Damage:
    return lambda folder: [damage(path) for path in newest(folder)]


@pytest.mark.parametrize(
    ("damage", "warned"),
    [
        pytest.param(lambda f: truncate(newest(f)[0]), ["cannot be read"], id="the newest"),
        pytest.param(each(flip), ["is damaged"] * 2, id="both"),
        pytest.param(each(Path.unlink), [], id="both gone"),
        pytest.param(lambda f: (f / ".run.7.json").write_text("left"), [], id="leftovers"),
    ],
)
def test_a_damaged_savepoint_is_found_and_what_it_held_is_computed_again(
    out: str, stopped: Path, whole: dict[str, str], damage: Damage, warned: list[str]
) -> None:
    """See test_savepoints.py for other kinds of damage."""
    damage(stopped)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert resume(out) == 0
    assert [str(one.message).split(";")[0].split("safetensors ")[1] for one in caught] == warned
    assert outcome(out) == whole


def test_a_damaged_journal_is_found_and_measured_again(out: str, whole: dict[str, str]) -> None:
    """See test_journal.py for other kinds of damage."""
    folder = shutil.copytree(folder_of(Path(f"left-{EVALUATING}")), folder_of(Path(out)))
    path = folder / "evaluation.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 1 + 4
    path.write_text("\n".join([lines[0], lines[1].replace("0.", "1.", 1), *lines[2:]])[:-5])
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
        (lambda f: edit(f, format=1), "run.json: is of format 1 and this curate knows 7"),
        (lambda f: flip(f / "run.json"), "run.json: is damaged"),
        (lambda f: truncate(f / "run.json"), "run.json: is damaged"),
        (lambda f: (f / "run.json").write_text(""), "run.json: is damaged"),
        (lambda f: (f / "run.json").write_text("[1]"), "run.json: is damaged"),
        (lambda f: (f / "run.json").unlink(), "was not written by curate, so it is left alone"),
        (lambda f: (f / ".git.x").touch(), "left alone; move it away (it holds .git.x)"),
        (not_ours, "was not written by curate, so it is left alone"),
    ],
    ids=[
        "threads",
        "device",
        "versions",
        "code",
        "newer",
        "bit",
        "cut short",
        "empty",
        "a list",
        "no identity",
        "a hidden file",
        "somebody else's",
    ],
)
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
    place: Path,
    whole: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
        "--resume continues it, --overwrite starts again.\n"
    )
    assert curate("recipe.yaml", "--out", out, "--quiet", "--overwrite") == 0
    assert outcome(out) == whole
    assert not stopped.exists()


def test_what_is_finished_is_not_done_again(
    place: Path,
    whole: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
    out: str,
    whole: dict[str, str],
    error: BaseException,
    code: int,
    word: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
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
    assert newest(folder_of(Path(out)))
    if code == 130:  # what is left, and so what follows, is the same in all cases
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
    out: str,
    whole: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Real writes that fail half-way: files may grow to so many bytes only."""
    monkeypatch.setattr(savepoints, "SHARE", float("inf"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_500, before[1]))
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
