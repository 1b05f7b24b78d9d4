"""Who does what: trials of an Optuna study, shared by any number of processes.

A trial is WAITING until a process claims it, then RUNNING, then COMPLETE, or PRUNED if it
came to no value. When its process gives no sign of life it becomes FAIL, and what it tried is
open again. Claims are made under a lock in the directory. Processes on other machines share
only a database; its transactions keep them apart, and of two trials of the same thing the
earlier counts.
"""

import json
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import polars as pl
from filelock import FileLock
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages import RDBStorage
from optuna.storages._heartbeat import get_heartbeat_thread
from optuna.trial import FrozenTrial, TrialState

from curate.errors import CurateError, OptionError, OutputError
from curate.runtime.files import write_whole_text
from curate.runtime.resume import changes
from curate.tuning.grid import Grid, Pair

STUDY, OLD_STUDY = "study.db", "study.journal"
ASKED = "asked.json"
"""What a folder's runs are of: the recipe and what identifies its data."""
HEARTBEAT, GRACE = 5, 15
"""Seconds between signs of life of a process, and after how many it counts as dead."""
PATIENCE = 60
"""Seconds that a process waits for others to write to a file."""
SCHEMA: dict[str, Any] = {
    "horizon": pl.Int64,
    "learning_rate": pl.Float64,
    "outcome": pl.String,
    "value": pl.Float64,
    "values": pl.List(pl.Float64),
    "signal": pl.Float64,
    "error": pl.Float64,
    "jump": pl.Float64,
    "propagation": pl.Float64,
    "probes": pl.Int64,
    "reason": pl.String,
    "trial": pl.Int64,
    "passes": pl.Float64,
    "seconds": pl.Float64,
}

Trial = Pair | float
"""A pair to run, or the learning rate of a pilot."""


@dataclass(frozen=True)
class Entry:
    """What the study says of a trial. value: None until it is finished, and where it failed."""

    number: int
    state: Literal["waiting", "running", "finished"]
    value: float | None
    notes: dict[str, Any]


class Study:
    """The trials of one tuning and what came of them.

    Two Optuna studies in one storage: `NAME` has the pairs, run or dropped, `NAME pilots` the
    pilots. lock: keeps other processes from deciding anything meanwhile.
    """

    def __init__(
        self, folder: Path, url: str | None, grid: Grid, key: str, asked: dict[str, Any]
    ) -> None:
        """`key` names what is tuned; `asked` says it in full, to compare and to explain.

        Raises:
            OutputError: the folder cannot be written, or holds another tuning or a damaged one.
            OptionError: the storage cannot be opened.
        """
        self.folder, self._grid, name = folder, grid, f"curate {key}"
        self._claimed: dict[Trial, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.lock = FileLock(folder / ".lock")
            with self.lock:
                self._refuse_another(asked)
                self._storage = open_storage(folder, url)
                self.study, self._pilots = self._open(name), self._open(f"{name} pilots")
                self.entries()
        except CurateError:
            raise
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written: {error.strerror}.") from error
        except Exception as error:  # drivers and Optuna raise anything when it is not a study
            reason = next(iter(str(error).splitlines()), "")
            if url is not None:
                raise OptionError(f"--storage {url}: cannot be opened: {reason}") from error
            raise OutputError(
                f"{folder / STUDY}: cannot be opened as a study: {reason}; "
                "if it is damaged, delete it to start anew."
            ) from error

    def entries(self) -> dict[Trial, Entry]:
        """All trials: for each, the first attempt that did not fail."""
        entries: dict[Trial, Entry] = {}
        for study in (self._pilots, self.study):
            for frozen in study.get_trials(deepcopy=False):
                if frozen.state != TrialState.FAIL:
                    entries.setdefault(_trial_of(frozen), _entry_of(frozen))
        return entries

    def claim(self, trials: Sequence[Trial]) -> Trial | None:
        """Take the first of `trials` that nobody has; None if all are taken."""
        with self.lock:
            for study in (self._pilots, self.study):
                fail_the_dead(study)
            for trial in trials:
                if trial not in self.entries():
                    self._add(trial, TrialState.WAITING, {})
                entry = self.entries()[trial]
                if entry.state == "waiting" and self._take(trial, entry.number):
                    return trial
        return None

    @contextmanager
    def at_work(self, trial: Trial) -> Iterator[None]:
        """Hold on to a claimed trial; it is given back if the work on it breaks off."""
        trial_id = self._claimed[trial]
        try:
            with get_heartbeat_thread(trial_id, self._storage):
                yield
        except BaseException:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # it is finished already
                self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
            raise

    def finish(self, trial: Trial, value: float | None, notes: dict[str, Any]) -> None:
        """Enter what came of a claimed trial; None if nothing did, and `notes` say why.

        If this process was taken for dead meanwhile, another one enters the same.
        """
        trial_id = self._claimed[trial]
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            for name, note in notes.items():
                self._storage.set_trial_user_attr(trial_id, name, note)
            values = None if value is None else [value]
            self._storage.set_trial_state_values(trial_id, state, values)

    def drop(self, pair: Pair, reason: str) -> None:
        """Enter a pair that is not going to be run."""
        if pair not in self.entries():
            self._add(pair, TrialState.PRUNED, {"dropped": True, "reason": reason})

    def remember(self, name: str, value: Any) -> None:
        """Note something about the whole."""
        self.study.set_user_attr(name, value)

    def recall(self, name: str) -> Any:
        """What was noted, None if nothing was."""
        return self.study.user_attrs.get(name)

    def _open(self, name: str) -> optuna.Study:
        return optuna.create_study(
            storage=self._storage,
            study_name=name,
            direction="minimize" if self._grid.tune.metric == "loss" else "maximize",
            load_if_exists=True,
        )

    def _refuse_another(self, asked: dict[str, Any]) -> None:
        """Raise OutputError if the folder has runs of something else; otherwise note what of."""
        path = self.folder / ASKED
        if not path.exists():
            write_whole_text(path, json.dumps(asked, indent=2) + "\n")
            return
        if different := changes(json.loads(path.read_text(encoding="utf-8")), asked):
            where, before, now = different[0]
            raise OutputError(
                f"{self.folder}: holds a tuning of something else: {'.'.join(where)} was "
                f"{before!r} and is {now!r}. Give another --out, or delete it."
            )

    def _study_of(self, trial: Trial) -> optuna.Study:
        return self.study if isinstance(trial, Pair) else self._pilots

    def _take(self, trial: Trial, number: int) -> bool:
        study_id = self._storage.get_study_id_from_name(self._study_of(trial).study_name)
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
        self._storage.record_heartbeat(trial_id)  # first: without, it would count as alive for ever
        self._claimed[trial] = trial_id
        with suppress(optuna.exceptions.UpdateFinishedTrialError):
            return self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        return False

    def _add(self, trial: Trial, state: TrialState, notes: dict[str, Any]) -> None:
        rates = self._grid.learning_rates
        ranges = {
            "learning_rate": FloatDistribution(rates[0], rates[-1], log=True),
            "horizon": IntDistribution(1, self._grid.steps, log=True),
        }
        params = trial._asdict() if isinstance(trial, Pair) else {"learning_rate": trial}
        self._study_of(trial).add_trial(
            optuna.create_trial(
                state=state,
                params=params,
                distributions={name: ranges[name] for name in params},
                user_attrs=notes,
            )
        )


def _trial_of(frozen: FrozenTrial) -> Trial:
    rate: float = frozen.params["learning_rate"]
    return Pair(frozen.params["horizon"], rate) if "horizon" in frozen.params else rate


def _entry_of(frozen: FrozenTrial) -> Entry:
    if frozen.state == TrialState.WAITING:
        return Entry(frozen.number, "waiting", None, frozen.user_attrs)
    if frozen.state == TrialState.RUNNING:
        return Entry(frozen.number, "running", None, frozen.user_attrs)
    return Entry(frozen.number, "finished", frozen.value, frozen.user_attrs)


def table_of(entries: Mapping[Trial, Entry], grid: Grid, best: Pair) -> pl.DataFrame:
    """A row per pair, and one per pilot, which has no horizon.

    outcome: `pilot`; `dropped`, the influences cannot be trusted; `untried`, beyond the budget;
    `failed`, it diverged or kept nothing; `beaten`; `best`. value: the metric on the judging
    part, mean of `values`, one per seed; for a pilot, that of training on everything. signal,
    error, jump, propagation, probes: what the pilot showed at the pair's horizon, see `View`.
    reason: why a pair has no value. trial: its number in the study (a pilot's in the study of
    pilots). passes: gradients of a batch, about.
    """
    rows: list[dict[str, Any]] = []
    for lr in grid.learning_rates:
        rows.append({"learning_rate": lr, "outcome": "pilot"} | _row(entries[lr]))
        for view in entries[lr].notes["views"]:
            pair = Pair(view["horizon"], lr)
            entry = entries.get(pair)
            outcome = "best" if pair == best else _outcome(entry)
            rows.append(view | {"learning_rate": lr, "outcome": outcome} | _row(entry))
    return pl.DataFrame(rows, schema=SCHEMA)


def _row(entry: Entry | None) -> dict[str, Any]:
    return {} if entry is None else entry.notes | {"value": entry.value, "trial": entry.number}


def _outcome(entry: Entry | None) -> str:
    if entry is None:
        return "untried"
    if entry.notes.get("dropped"):
        return "dropped"
    return "failed" if entry.value is None else "beaten"


def open_storage(folder: Path, url: str | None) -> RDBStorage:
    """The database at `url`, or an SQLite file in `folder`.

    Raises:
        OutputError: the folder has a study that an older curate wrote.
        Exception: any, from the driver of a database that cannot be opened.
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
        url = file.render_as_string()  # quotes what has a meaning in a URL
    options = {"connect_args": {"timeout": PATIENCE}} if url.startswith("sqlite:") else {}
    with _experimental():
        return RDBStorage(url, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)


def fail_the_dead(study: optuna.Study) -> None:
    """Mark the trials of dead processes as failed."""
    with _experimental():
        optuna.storages.fail_stale_trials(study)


def _check(path: Path) -> None:
    """Raise sqlite3.Error if a file is damaged, or holds something other than studies."""
    with closing(sqlite3.connect(path, timeout=PATIENCE)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
        if tables and "studies" not in tables:
            raise sqlite3.DatabaseError("it has other tables")
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)


@contextmanager
def _experimental() -> Iterator[None]:
    """Silence Optuna's warning that heartbeats are experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
