"""Where a study is kept: a database of Optuna's, which tells dead processes by their heartbeat."""

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
from optuna.storages import RDBStorage

from curate.errors import OutputError

STUDY, OLD_STUDY = "study.db", "study.journal"
HEARTBEAT, GRACE = 5, 15
"""Seconds between signs of life of a process, and after how many it counts as dead."""
PATIENCE = 60
"""Seconds that a process waits for others to write to a file."""


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
