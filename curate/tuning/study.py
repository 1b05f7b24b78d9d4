"""Who does what: units of work as trials of an Optuna study, shared by any number of processes.

A unit is a trial: WAITING until a process claims it, then RUNNING, then COMPLETE, or PRUNED if
it came to no value. One whose process gives no sign of life is FAIL, and its unit is up for
work again. Claims are made under a lock in the directory; processes on other machines, which
share only a database, are kept apart by its transactions, and by the rule that of two trials of
one unit the earlier counts.
"""

import json
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from filelock import FileLock
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState

from curate.errors import CurateError, OptionError, OutputError
from curate.runtime.files import write_whole_text
from curate.tuning.grid import Pair, Plan

STUDY, OLD_STUDY = "study.db", "study.journal"
HEARTBEAT, GRACE = 5, 15
"""Seconds between signs of life of a process, and after how many it counts as dead."""
PATIENCE = 60
"""Seconds that a process waits for others to write to a file."""


class Unit(NamedTuple):
    """A piece of work: the run of a pair, or without a horizon the pilot of a learning rate."""

    learning_rate: float
    horizon: int | None = None


ASKED = "asked.json"
"""What a folder's runs are of: the recipe and what identifies its data."""


@dataclass(frozen=True)
class Entry:
    """What the board knows of a unit. value: None until it is finished, and where it failed."""

    number: int
    state: Literal["waiting", "running", "finished"]
    value: float | None
    notes: dict[str, Any]


class Board:
    """The units of one tuning and what came of them.

    Two studies of one storage: `NAME` has a trial per pair, run or dropped, `NAME pilots` one
    per learning rate. lock: keeps other processes from deciding anything meanwhile.
    """

    def __init__(
        self, folder: Path, url: str | None, plan: Plan, key: str, asked: dict[str, Any]
    ) -> None:
        """`key` names what is tuned; `asked` says it in full, for when it is not the same.

        Raises:
            OutputError: the folder cannot be written, or holds another tuning or a damaged one.
            OptionError: the storage cannot be opened.
        """
        self.folder, self._plan, self.name = folder, plan, f"curate {key}"
        self._claimed: dict[Unit, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / ".lock")
            with self.lock:
                self._refuse_another(asked)
                self._storage = open_storage(folder, url)
                self.study = self._study(self.name)
                self._pilots = self._study(f"{self.name} pilots")
                self.entries()
        except CurateError:
            raise
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}.") from error
        except Exception as error:  # what drivers and Optuna make of what is no study
            reason = next(iter(str(error).splitlines()), "")
            if url is not None:
                raise OptionError(f"--storage {url}: cannot be opened: {reason}") from error
            raise OutputError(
                f"{folder / STUDY}: cannot be opened as a study: {reason}; "
                "if it is damaged, delete it to start anew."
            ) from error

    def entries(self) -> dict[Unit, Entry]:
        """Every unit that there is, by its first trial that did not fail."""
        found: dict[Unit, Entry] = {}
        for study in (self._pilots, self.study):
            for trial in study.get_trials(deepcopy=False):
                if trial.state != TrialState.FAIL:
                    found.setdefault(_unit_of(trial), _entry_of(trial))
        return found

    def claim(self, units: Sequence[Unit]) -> Unit | None:
        """Take the first of `units` that nobody has; None if all are taken."""
        with self.lock:
            for study in (self._pilots, self.study):
                fail_the_dead(study)
            for unit in units:
                if unit not in self.entries():
                    self._add(unit, TrialState.WAITING, {})
                entry = self.entries()[unit]
                if entry.state == "waiting" and self._take(unit, entry.number):
                    return unit
        return None

    @contextmanager
    def at_work(self, unit: Unit) -> Iterator[None]:
        """Hold on to a claimed unit; it is given back if the work on it breaks off."""
        trial_id = self._claimed[unit]
        try:
            with get_heartbeat_thread(trial_id, self._storage):
                yield
        except BaseException:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # it is finished already
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            raise

    def finish(self, unit: Unit, value: float | None, notes: dict[str, Any]) -> None:
        """Enter what came of a claimed unit; None if nothing did, and `notes` say why.

        Where this process was taken for dead meanwhile, another one enters the same.
        """
        trial_id = self._claimed[unit]
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        values = None if value is None else [value]
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, note in notes.items():
                self._storage.set_trial_user_attr(trial_id, name, note)
            self._storage.set_trial_state_values(trial_id, state, values)

    def drop(self, pair: Pair, notes: dict[str, Any]) -> None:
        """Enter a pair that is not going to be run."""
        unit = Unit(pair.learning_rate, pair.horizon)
        if unit not in self.entries():
            self._add(unit, TrialState.PRUNED, notes)

    def remember(self, name: str, value: Any) -> None:
        """Note something about the whole."""
        self.study.set_user_attr(name, value)

    def recall(self, name: str) -> Any:
        """What was noted, None if nothing was."""
        return self.study.user_attrs.get(name)

    def _study(self, name: str) -> optuna.Study:
        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction="minimize" if self._plan.tune.metric == "loss" else "maximize",
            load_if_exists=True,
        )

    def _refuse_another(self, asked: dict[str, Any]) -> None:
        """Raise OutputError if the folder has runs of something else; otherwise say what of."""
        path = self.folder / ASKED
        if not path.exists():
            write_whole_text(path, json.dumps(asked, indent=2) + "\n")
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != json.loads(json.dumps(asked)):
            raise OutputError(
                f"{self.folder}: holds a tuning of something else: {difference(before, asked)}. "
                "Give another --out, or delete it."
            )

    def _study_of(self, unit: Unit) -> optuna.Study:
        return self._pilots if unit.horizon is None else self.study

    def _take(self, unit: Unit, number: int) -> bool:
        study_id = self._storage.get_study_id_from_name(self._study_of(unit).study_name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._storage.record_heartbeat(trial_id)  # first: without, it would count as alive for ever
        self._claimed[unit] = trial_id
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            return self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        return False

    def _add(self, unit: Unit, state: TrialState, notes: dict[str, Any]) -> None:
        rates = self._plan.learning_rates
        params: dict[str, Any] = {"learning_rate": unit.learning_rate}
        ranges: dict[str, Any] = {"learning_rate": FloatDistribution(rates[0], rates[-1], log=True)}
        if unit.horizon is not None:
            params["horizon"] = unit.horizon
            ranges["horizon"] = IntDistribution(1, self._plan.steps, log=True)
        self._study_of(unit).add_trial(
            optuna.create_trial(
                state=state,
                params=params,
                distributions=ranges,
                user_attrs=notes,
            )
        )


def difference(before: Any, after: Any, path: str = "") -> str:
    """Where two nested values differ first, in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            if before.get(key) != after.get(key):
                where = f"{path}.{key}" if path else str(key)
                return difference(before.get(key), after.get(key), where)
    return f"{path} was {before!r} and is {after!r}"


def _unit_of(trial: FrozenTrial) -> Unit:
    return Unit(trial.params["learning_rate"], trial.params.get("horizon"))


def _entry_of(trial: FrozenTrial) -> Entry:
    if trial.state == TrialState.WAITING:
        return Entry(trial.number, "waiting", None, trial.user_attrs)
    if trial.state == TrialState.RUNNING:
        return Entry(trial.number, "running", None, trial.user_attrs)
    return Entry(trial.number, "finished", trial.value, trial.user_attrs)


def open_storage(folder: Path, url: str | None) -> RDBStorage:
    """The database at `url`, or a file of SQLite in `folder`.

    Raises:
        OutputError: the folder has a study that an older curate wrote.
        Exception: whatever the drivers of a dozen databases make of what they cannot open.
    """
    import sqlalchemy

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        if (folder / OLD_STUDY).exists():
            raise OutputError(
                f"{folder / OLD_STUDY}: was written by an older curate, and is not read any more; "
                "give another --out, or delete it."
            )
        _check(folder / STUDY)
        file = sqlalchemy.URL.create("sqlite", database=str(folder / STUDY))
        url = file.render_as_string()  # which quotes what has a meaning in a URL
    options = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite:") else {}
    with _experimental():
        return RDBStorage(url, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)


def fail_the_dead(study: optuna.Study) -> None:
    """Have the trials of processes that are no more fail."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)


def _check(path: Path) -> None:
    """Raise sqlite3.Error if a file is damaged, or has something else than studies."""
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
        if tables and "studies" not in tables:
            raise sqlite3.DatabaseError("it has other tables")
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(found)


@contextmanager
def _experimental() -> Iterator[None]:
    """Heartbeats are new in Optuna, which need not be said every time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
