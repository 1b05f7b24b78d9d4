"""Where a study is kept, and which of the processes at work on it still live."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import TrialState

from curate.errors import OptionError

JOURNAL = "study.journal"
HEARTBEAT, GRACE = 20, 90
"""Seconds between signs of life in a database, and after how many a process counts as dead."""


def open_storage(folder: Path, url: str | None) -> BaseStorage:
    """The database at `url`, or a journal in `folder`.

    Raises:
        OptionError: the database cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        lock = _KernelLock(str(folder / JOURNAL))
        lock.acquire()  # a process at work may be writing
        try:
            mend(folder / JOURNAL)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(folder / JOURNAL), lock))
    try:
        with _experimental():
            return RDBStorage(url, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    except Exception as error:  # the drivers of a dozen databases raise what they like
        reason = " ".join(str(error).split())[:200]
        raise OptionError(f"--storage {url}: cannot be opened: {reason}") from error


class _KernelLock(JournalFileOpenLock):
    """A lock on the journal that ends with its holder.

    Optuna's own are files, which a killed process leaves, and others then wait for half a minute.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._kernel = FileLock(path + ".flock")

    def acquire(self) -> bool:
        """Wait for it."""
        self._kernel.acquire()
        return True

    def release(self) -> None:
        """Let others have it."""
        self._kernel.release()


def mend(journal: Path) -> None:
    """Cut off a last line whose writer died in it: nobody could read past it."""
    if journal.exists():
        text = journal.read_bytes()
        with journal.open("r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)


class Presence:
    """That this process lives, for others to see: a lock that ends with it, however it ends."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / ".alive"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.token = uuid4().hex
        self._lock = FileLock(self._folder / self.token)
        self._lock.acquire()

    def leave(self) -> None:
        """Be gone."""
        self._lock.release()
        (self._folder / self.token).unlink(missing_ok=True)

    def lives(self, token: str | None) -> bool:
        """Whether the process with this token does."""
        if token == self.token:
            return True
        if not token or not (self._folder / token).exists():
            return False
        try:
            with FileLock(self._folder / token, timeout=0):
                pass
        except Timeout:
            return True
        (self._folder / token).unlink(missing_ok=True)
        return False


def fail_the_dead(study: optuna.Study, storage: BaseStorage, presence: Presence) -> None:
    """Have the trials of processes that are no more fail: in a database, by their heartbeat."""
    if isinstance(storage, RDBStorage):
        with _experimental():
            optuna.storages.fail_stale_trials(study)
        return
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not presence.lives(trial.user_attrs.get("owner")):
            study.tell(trial.number, state=TrialState.FAIL)


def sign_of_life(storage: BaseStorage, trial_id: int) -> None:
    """Give one about a trial, where the storage has them."""
    if isinstance(storage, RDBStorage):
        storage.record_heartbeat(trial_id)


@contextmanager
def heartbeat(storage: BaseStorage, trial_id: int) -> Iterator[None]:
    """Give signs of life about a trial, where the storage has them."""
    if not isinstance(storage, RDBStorage):
        yield
        return
    database, stop = storage, threading.Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT / 2):
            database.record_heartbeat(trial_id)

    database.record_heartbeat(trial_id)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _experimental() -> Iterator[None]:
    """Heartbeats are new in Optuna, which need not be said every time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
