"""Units of work are claimed once, whoever lives, dies or shares."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from optuna.trial import TrialState

from curate.errors import OptionError, OutputError
from curate.recipe import Tune
from curate.tuning.board import Board, Unit, difference
from curate.tuning.plan import Pair, Plan
from curate.tuning.storage import JOURNAL, open_storage

PLAN = Plan((1, 4), (1e-3, 1e-2), 8, 1.0, False, 4, Tune())
UNITS = [Unit(1e-3), Unit(1e-2)]
RUNS = [Unit(1e-3, 4), Unit(1e-2, 1)]


def board(folder: Path, url: str | None = None, asked: dict | None = None) -> Board:
    return Board(folder, url, PLAN, "key", asked or {"recipe": {"a": 1}})


@pytest.fixture(params=["journal", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    return None if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


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
    for each in (one, other):
        each.close()


def test_what_breaks_off_after_the_end_of_the_work_leaves_the_result(
    tmp_path: Path, url: str | None
) -> None:
    own = board(tmp_path, url)
    assert own.claim(UNITS) == UNITS[0]
    own.finish(UNITS[0], 0.5, {})
    with pytest.raises(KeyboardInterrupt), own.at_work(UNITS[0]):
        raise KeyboardInterrupt
    assert own.entries()[UNITS[0]].value == 0.5
    own.close()


def test_trials_are_complete_or_pruned_and_the_best_is_optunas_too(
    tmp_path: Path, url: str | None
) -> None:
    own = board(tmp_path, url)
    own.drop(Pair(4, 1e-2), {"dropped": True, "reason": "wrong"})
    own.drop(Pair(4, 1e-2), {"dropped": True, "reason": "again"})
    for value in (0.3, 0.2):
        unit = own.claim(RUNS)
        assert unit is not None
        own.finish(unit, value, {})
    assert own.claim([Unit(1e-3, 1)]) == Unit(1e-3, 1)
    own.finish(Unit(1e-3, 1), None, {"reason": "diverged"})
    states = [trial.state for trial in own.study.trials]
    pruned, complete = TrialState.PRUNED, TrialState.COMPLETE
    assert states == [pruned, complete, complete, pruned]
    assert own.study.best_trial.params == {"horizon": 1, "learning_rate": 1e-2}
    assert own.study.trials_dataframe()["params_horizon"].tolist() == [4, 4, 1, 1]
    own.close()


def test_the_study_can_be_opened_by_its_name(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    own = board(tmp_path, url)
    assert own.claim(RUNS) == RUNS[0]
    own.finish(RUNS[0], 1.0, {})
    own.close()
    assert optuna.load_study(study_name="curate key", storage=url).best_value == 1.0


def _claim_and_wait(folder: Path, ready: Path) -> None:
    own = board(folder)
    with own.at_work(own.claim(UNITS)):  # type: ignore[arg-type]
        ready.touch()
        time.sleep(60)


def test_a_killed_process_gives_its_unit_back_and_a_living_one_does_not(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_claim_and_wait, args=(tmp_path, tmp_path / "ready")
    )
    process.start()
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    own = board(tmp_path)
    assert own.claim(UNITS[:1]) is None
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert own.claim(UNITS[:1]) == UNITS[0]
    own.finish(UNITS[0], 1.0, {})
    states = [trial.state for trial in own._pilots.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE]
    own.close()


def test_work_that_breaks_off_is_up_again(tmp_path: Path, url: str | None) -> None:
    own = board(tmp_path, url)
    unit = own.claim(UNITS)
    assert unit is not None
    with pytest.raises(KeyboardInterrupt), own.at_work(unit):
        raise KeyboardInterrupt
    assert own.claim(UNITS[:1]) == unit
    own.close()


def test_a_process_dead_to_a_database_is_told_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curate.tuning.storage.GRACE", 1)
    url = f"sqlite:///{tmp_path}/study.db"
    dead, own = board(tmp_path / "there", url), board(tmp_path / "here", url)
    unit = dead.claim(UNITS)
    assert unit is not None
    assert own.claim([unit]) is None
    time.sleep(2.1)
    assert own.claim([unit]) == unit
    for each in (dead, own):
        each.close()


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
    own.close()


def test_a_last_line_that_its_writer_died_in_is_cut_off(tmp_path: Path) -> None:
    own = board(tmp_path)
    assert own.claim(UNITS) == UNITS[0]
    own.finish(UNITS[0], 1.0, {})
    own.close()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    again = board(tmp_path)
    assert again.entries()[UNITS[0]].value == 1.0
    assert again.claim(UNITS) == UNITS[1]
    again.close()


def test_a_line_that_another_process_is_writing_is_not_cut_off(tmp_path: Path) -> None:
    board(tmp_path).close()
    journal = tmp_path / JOURNAL
    whole = journal.read_bytes()
    with FileLock(str(journal) + ".flock"):
        journal.write_bytes(whole + b'{"op_code": 5, "wor')
        late = threading.Thread(target=open_storage, args=(tmp_path, None))
        late.start()
        time.sleep(0.3)
        assert journal.read_bytes() != whole
    late.join()
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("content", [b"notes\nmore\n", b"\xa5\n", b'{"a": 1}\n', b"[]\n", b"\n\n"])
def test_a_file_that_is_no_study_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(content)
    with pytest.raises(OutputError, match=r"study\.journal: is damaged, or no study"):
        board(tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == content
    assert not any((tmp_path / ".alive").iterdir())


def test_another_tuning_in_the_same_place_is_refused_by_what_differs(tmp_path: Path) -> None:
    board(tmp_path, asked={"recipe": {"a": 1, "b": {"c": 2}}}).close()
    with pytest.raises(OutputError, match=r"recipe\.b\.c was 2 and is 3\. Give another --out"):
        Board(tmp_path, None, PLAN, "other", {"recipe": {"a": 1, "b": {"c": 3}}})
    assert not any((tmp_path / ".alive").iterdir())


def test_differences_are_found_where_they_are() -> None:
    assert difference({"a": 1}, {"a": 1, "b": 2}) == "b was None and is 2"
    assert difference({"a": [1]}, {"a": [2]}) == "a was [1] and is [2]"


@pytest.mark.parametrize("bad", ["nonsense", "sqlite:////no/such/folder/x.db", "what://ever"])
def test_a_storage_that_cannot_be_opened_is_refused_in_a_line(tmp_path: Path, bad: str) -> None:
    with pytest.raises(OptionError, match=f"--storage {bad}: cannot be opened"):
        board(tmp_path, bad)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        board(tmp_path / "file" / "out")
