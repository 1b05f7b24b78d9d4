"""Units of work are claimed once, whoever lives, dies or shares."""

import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from curate.errors import OptionError, OutputError
from curate.influence.cost import RunShape
from curate.recipe import Tune
from curate.tuning.grid import Grid, Pair
from curate.tuning.study import STUDY, Study, Trial

PLAN = Grid((1, 4), (1e-3, 1e-2), 8, RunShape([0.5] * 8, 8, 4), Tune(), 8, 0, 1)
UNITS = [1e-3, 1e-2]
RUNS = [Pair(4, 1e-3), Pair(1, 1e-2)]


def board(folder: Path, url: str | None = None, asked: dict | None = None) -> Study:
    return Study(folder, url, PLAN, "key", asked or {"recipe": {"a": 1}})


@pytest.fixture(params=["file", "url"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "file" else f"sqlite:///{tmp_path}/shared.db"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grace of two seconds, which the database counts whole."""
    monkeypatch.setattr("curate.tuning.study.HEARTBEAT", 1)
    monkeypatch.setattr("curate.tuning.study.GRACE", 2)


def pass_grace(database: Path) -> None:
    """As if the last signs of life had come a minute ago."""
    with closing(sqlite3.connect(database)) as connection, connection:
        table = "trial_heartbeats SET heartbeat = datetime(heartbeat, '-60 seconds')"
        assert connection.execute(f"UPDATE {table}").rowcount


def test_a_unit_is_claimed_once_and_its_result_is_there_for_all(
    tmp_path: Path, url: str | None
) -> None:
    one, other = board(tmp_path, url), board(tmp_path, url)
    assert one.claim(UNITS) == UNITS[0]
    assert other.claim(UNITS) == UNITS[1]
    assert one.claim(UNITS) is None
    assert other.entries()[UNITS[0]].state == "running"
    one.finish(UNITS[0], 0.5, {"views": [1, 2]})
    entry = other.entries()[UNITS[0]]
    assert (entry.state, entry.value, entry.notes["views"]) == ("finished", 0.5, [1, 2])
    assert other.claim(UNITS[:1]) is None


def test_what_breaks_off_after_the_end_of_the_work_leaves_the_result(
    tmp_path: Path, url: str | None
) -> None:
    own = board(tmp_path, url)
    assert own.claim(UNITS) == UNITS[0]
    own.finish(UNITS[0], 0.5, {})
    with pytest.raises(KeyboardInterrupt), own.at_work(UNITS[0]):
        raise KeyboardInterrupt
    assert own.entries()[UNITS[0]].value == 0.5


def test_trials_are_complete_or_pruned_and_the_best_is_optunas_too(
    tmp_path: Path, url: str | None
) -> None:
    own = board(tmp_path, url)
    own.drop(Pair(4, 1e-2), "wrong")
    own.drop(Pair(4, 1e-2), "again")
    for value in (0.3, 0.2):
        unit = own.claim(RUNS)
        assert unit is not None
        own.finish(unit, value, {})
    assert own.claim([Pair(1, 1e-3)]) == Pair(1, 1e-3)
    own.finish(Pair(1, 1e-3), None, {"reason": "diverged"})
    states = [trial.state for trial in own.study.trials]
    pruned, complete = TrialState.PRUNED, TrialState.COMPLETE
    assert states == [pruned, complete, complete, pruned]
    assert own.study.best_trial.params == {"horizon": 1, "learning_rate": 1e-2}
    assert own.study.trials_dataframe()["params_horizon"].tolist() == [4, 4, 1, 1]


def test_the_study_can_be_opened_by_its_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    own = board(tmp_path, url)
    assert own.claim(RUNS) == RUNS[0]
    own.finish(RUNS[0], 1.0, {})
    assert optuna.load_study(study_name="curate key", storage=url).best_value == 1.0


def _claim_and_wait(folder: Path, ready: Path) -> None:
    own = board(folder)
    with own.at_work(own.claim(UNITS)):  # type: ignore[arg-type]
        ready.touch()
        time.sleep(60)


@pytest.mark.usefixtures("short")
def test_a_killed_process_gives_its_unit_back_and_a_living_one_does_not(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_claim_and_wait, args=(tmp_path, tmp_path / "ready")
    )
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    own = board(tmp_path)
    time.sleep(4)
    assert own.claim(UNITS[:1]) is None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    pass_grace(tmp_path / STUDY)
    assert own.claim(UNITS[:1]) == UNITS[0]
    own.finish(UNITS[0], 1.0, {})
    states = [trial.state for trial in own._pilots.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]


def _claim_all(folder: Path, units: list[Trial], taken: Path) -> None:
    own = board(folder)
    while (unit := own.claim(units)) is not None:
        with taken.open("a") as file, own.at_work(unit):
            file.write(f"{units.index(unit) + 1}\n")
            own.finish(unit, 1.0, {})


def test_processes_that_start_at_once_do_every_unit_once(tmp_path: Path) -> None:
    units = [Pair(k, 1e-3) for k in range(1, 9)]
    several = multiprocessing.get_context("fork")
    processes = [
        several.Process(target=_claim_all, args=(tmp_path / "out", units, tmp_path / f"{k}.txt"))
        for k in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    taken = [line for file in tmp_path.glob("*.txt") for line in file.read_text().split()]
    assert sorted(map(int, taken)) == [*range(1, 9)]


def test_work_that_breaks_off_is_up_again(tmp_path: Path, url: str | None) -> None:
    own = board(tmp_path, url)
    unit = own.claim(UNITS)
    assert unit is not None
    with pytest.raises(KeyboardInterrupt), own.at_work(unit):
        raise KeyboardInterrupt
    assert own.claim(UNITS[:1]) == unit


def test_who_was_taken_for_dead_leaves_the_result_to_the_other(
    tmp_path: Path, url: str | None
) -> None:
    dead, own = board(tmp_path, url), board(tmp_path, url)
    unit = dead.claim(UNITS)
    assert unit is not None
    assert own.claim([unit]) is None
    pass_grace(tmp_path / (STUDY if url is None else "shared.db"))
    assert own.claim([unit]) == unit
    dead.finish(unit, 2.0, {})
    assert own.entries()[unit].state == "running"
    own.finish(unit, 1.0, {})
    assert dead.entries()[unit].value == 1.0


def test_of_two_trials_of_a_unit_the_earlier_counts(tmp_path: Path) -> None:
    """Machines that share nothing but a database may both enter one."""
    url = f"sqlite:///{tmp_path}/study.db"
    own = board(tmp_path, url)
    for _ in range(2):
        own._add(RUNS[0], TrialState.WAITING, {})
    assert own.claim(RUNS[:1]) == RUNS[0]
    assert own.claim(RUNS[:1]) is None
    own.finish(RUNS[0], 1.0, {})
    assert own.claim(RUNS[:1]) is None


@pytest.mark.parametrize("name", ["a?b {x}", "a%20b#c", "é"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    own = board(tmp_path / name)
    assert own.claim(UNITS) == UNITS[0]
    assert (tmp_path / name / STUDY).stat().st_size > 0


@pytest.mark.parametrize("content", [b"notes\nmore\n", b"\xa5\n", b'{"a": 1}\n', b"\n\n"])
def test_a_file_that_is_no_study_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STUDY).write_bytes(content)
    with pytest.raises(OutputError, match=r"study\.db: cannot be opened as a study: file is not a"):
        board(tmp_path)
    assert (tmp_path / STUDY).read_bytes() == content


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / STUDY)) as database:
        database.execute("CREATE TABLE notes (text)")
    before = (tmp_path / STUDY).read_bytes()
    with pytest.raises(OutputError, match=r"cannot be opened as a study: it has other tables"):
        board(tmp_path)
    assert (tmp_path / STUDY).read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "scribbled", "text"])
def test_a_damaged_study_is_refused_in_a_line(tmp_path: Path, damage: str) -> None:
    own = board(tmp_path)
    for unit in RUNS:
        assert own.claim([unit]) == unit
        own.finish(unit, 1.0, {"values": [1.0] * 500})
    path = tmp_path / STUDY
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "scribbled":
        path.write_bytes(whole[:8192] + b"\x07" * (len(whole) - 8192))
    else:
        path.write_bytes(whole.replace(b"[1.0, ", b"[1.0; "))
    with pytest.raises(OutputError, match=r"study\.db: cannot be opened as a study: ") as found:
        board(tmp_path)
    assert "\n" not in str(found.value)


def test_a_study_of_an_older_curate_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("{}\n")
    with pytest.raises(OutputError, match=r"study\.journal: was written by an older curate"):
        board(tmp_path)
    assert not (tmp_path / STUDY).exists()


def test_another_tuning_in_the_same_place_is_refused_by_what_differs(tmp_path: Path) -> None:
    board(tmp_path, asked={"recipe": {"a": 1, "b": {"c": 2}}})
    with pytest.raises(OutputError, match=r"recipe\.b\.c was 2 and is 3\. Give another --out"):
        Study(tmp_path, None, PLAN, "other", {"recipe": {"a": 1, "b": {"c": 3}}})


def test_differences_are_found_where_they_are(tmp_path: Path) -> None:
    for k, (asked, words) in enumerate(
        [({"a": 1, "b": 2}, "b was None and is 2"), ({"a": [1]}, r"a was 1 and is \[1\]")]
    ):
        board(tmp_path / str(k), asked={"a": 1})
        with pytest.raises(OutputError, match=f"something else: {words}"):
            board(tmp_path / str(k), asked=asked)


@pytest.mark.parametrize("bad", ["nonsense", "sqlite:////no/such/folder/x.db", "what://ever"])
def test_a_storage_that_cannot_be_opened_is_refused_in_a_line(tmp_path: Path, bad: str) -> None:
    with pytest.raises(OptionError, match=f"--storage {bad}: cannot be opened"):
        board(tmp_path, bad)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        board(tmp_path / "file" / "out")
