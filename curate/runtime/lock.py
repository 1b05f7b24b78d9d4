"""One process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from curate.errors import OutputError, UnfinishedError


@contextmanager
def alone(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock at `path`, whose folder is made if need be; its file goes afterwards.

    The kernel takes it back from the dead.

    Raises:
        UnfinishedError: another process holds it, `taken` says what to do.
        OutputError: the folder cannot be written.
    """
    lock = FileLock(path, timeout=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        if not path.exists():  # its holder has just cleared up
            raise Timeout(str(path))
    except Timeout:
        raise UnfinishedError(taken) from None
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()
