"""Savepoints: how far a run has come, on disk, to resume from if it dies."""

import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from curate.errors import RunError
from curate.runtime.files import DamagedError, Tree, read_sealed, write_sealed
from curate.runtime.ranks import ALONE, Ranks, agreed, everywhere

SHARE = 0.02
"""The most of a run's time that goes into writing savepoints."""
KEPT = 2
"""How many savepoints there are; one more while it is written."""


class Savepoints:
    """The newest two savepoints of one run, in files of a folder.

    One is written when it is offered, if so much time has passed since the last one that writing
    takes no more than `SHARE` of it: what dies with the process is never more than 1 / SHARE times
    the writing of a file, and what happened since the last offer. The new file is whole and on
    disk before the oldest goes.

    Every file is under a checksum, and carries the run's name and its number. One that is
    damaged, or another run's, is reported and not used: the run resumes from the one before,
    at worst from its beginning, with the same result. Of several ranks the first one writes, and
    decides what all of them resume from: the folder must be one that all of them see.
    """

    def __init__(self, folder: Path, run: str, ranks: Ranks = ALONE) -> None:
        self._folder, self._run, self._ranks = folder, run, ranks
        self._number = max((int(path.stem) for path in self._files()), default=0)
        self._seconds, self._last = 0.0, time.monotonic()

    def newest(self) -> Tree | None:
        """The tree of the newest savepoint that can be used; None if there is none.

        Raises:
            RunError: a rank does not see what the first one does.
        """
        number, tree = self._newest() if self._ranks.rank == 0 else (0, None)
        number = int(agreed(self._ranks, number))
        if number and self._ranks.rank:
            with suppress(DamagedError):
                tree = self._read(self._path(number))
        if not everywhere(self._ranks, (tree is not None) == (number > 0)):
            raise RunError(f"{self._folder}: not all processes can read it; put it where they do.")
        return tree

    def _newest(self) -> tuple[int, Tree | None]:
        for path in sorted(self._files(), reverse=True):
            try:
                return int(path.stem), self._read(path)
            except DamagedError as error:
                message = (
                    f"{error}; it is not used, what came after the savepoint before it is "
                    "computed again."
                )
                warnings.warn(message, RuntimeWarning, stacklevel=2)
        return 0, None

    def _read(self, path: Path) -> Tree:
        savepoint = read_sealed(path)
        if not isinstance(savepoint, dict) or savepoint.get("run") != self._run:
            raise DamagedError(f"{path} is another run's")
        if savepoint["number"] != int(path.stem):
            raise DamagedError(f"{path} is not what its name says")
        return savepoint["tree"]

    def offer(self, make: Callable[[], Tree], *, due: bool = False) -> None:
        """Write what `make` returns, if it is time or `due`.

        Raises:
            RunError: it cannot be written; the ones before are still there.
        """
        begin = time.monotonic()
        if self._ranks.rank:
            return
        if not due and (begin - self._last) * SHARE < self._seconds:
            return
        path = self._path(self._number + 1)
        try:
            self._folder.mkdir(exist_ok=True)
            write_sealed(path, {"run": self._run, "number": self._number + 1, "tree": make()})
            for old in sorted(self._files())[:-KEPT]:
                old.unlink()
        except (OSError, SafetensorError) as error:
            raise RunError(f"{path}: cannot be written: {error}; make room there.") from error
        self._number += 1
        self._last = time.monotonic()
        self._seconds = self._last - begin

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06d}.safetensors"

    def _files(self) -> list[Path]:
        return [p for p in self._folder.glob("*.safetensors") if p.stem.isdecimal()]
