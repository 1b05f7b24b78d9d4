"""Arrays as long as the data: in memory while they are small, in a file without a name where not.

What lies in a file is the kernel's to keep in memory or not; it counts as ours while its pages are
mapped, so they are let go of now and then.
"""

import io
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

Array = np.ndarray[Any, Any]
SMALL = 2**21
"""Bytes of an array that is held in memory, whatever the number of rows."""
PIECE = 2**16
"""Rows of an array that are gone through at once."""
MAPPED = 2**25
"""Bytes of files that may be mapped at once."""
TOGETHER = 2**26
"""Bytes of an array up to which it is kept in pieces of 4 MiB, which are found sooner."""
AROUND = 2**16
"""Bytes that are mapped where one is read: the kernel adds what it has of those around it."""
_maps: "weakref.WeakSet[mmap.mmap]" = weakref.WeakSet()
_touched = 0


def large(shape: int | tuple[int, ...], dtype: Any, folder: Path | str | None = None) -> Array:
    """An array of zeros; in a file that vanishes with it where it has more than `SMALL` bytes.

    Whoever reads or writes it row by row says so to `touched`, whoever goes through it, `released`.

    Args:
        folder: where the file is to be; the system's place for temporary files if None.

    Raises:
        OSError: there is no room for it, before anything is written.
    """
    dtype, shape = np.dtype(dtype), (shape,) if isinstance(shape, int) else shape
    size = prod(shape) * dtype.itemsize
    if size <= SMALL:
        return np.zeros(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            _make_room(file.fileno(), size)
        except OSError as error:
            raise OSError(
                error.errno, error.strerror, str(folder or tempfile.gettempdir())
            ) from error
        held = _mapped(file.fileno(), size)
    return np.frombuffer(held, dtype).reshape(shape)


class Growing:
    """An array that grows at its end; in a file without a name where it is large, see `large`."""

    def __init__(self, dtype: Any) -> None:
        self._dtype, self._size = np.dtype(dtype), 0
        self._file: IO[bytes] = io.BytesIO()

    def append(self, values: Any) -> None:
        """Add numbers at the end, shape (n,)."""
        part = np.ascontiguousarray(values, self._dtype).data
        self._size += part.nbytes
        if self._size > SMALL and isinstance(self._file, io.BytesIO):
            before, self._file = self._file, tempfile.TemporaryFile()  # noqa: SIM115
            self._file.write(before.getbuffer())
        self._file.write(part)

    def array(self) -> Array:
        """The whole, shape (N,); it grows no more."""
        if isinstance(self._file, io.BytesIO):
            return np.frombuffer(bytearray(self._file.getbuffer()), self._dtype)
        with self._file as file:
            file.flush()
            return np.frombuffer(_mapped(file.fileno(), self._size), self._dtype)


def held(sizes: Iterable[int]) -> int:
    """Bytes that arrays of these sizes take in memory together, about."""
    every = [*sizes]
    small = sum(size for size in every if size <= SMALL)
    return small + min(MAPPED, sum(every) - small)


def filled(values: Array, folder: Path | str | None = None) -> Array:
    """A copy of an array of this kind."""
    copy = large(values.shape, values.dtype, folder)
    for part in pieces(len(values)):
        copy[part] = values[part]
    return copy


def add_to_rows(sums: Array, rows: Array, columns: Sequence[Array]) -> None:
    """Add to some rows of sums, shape (N, W), what columns have for them, each of shape (n,).

    A row of which there are several has all of them added. There may be fewer columns than W.
    """
    width = sums.shape[1]
    places = rows[:, None] * width + np.arange(len(columns))
    np.add.at(sums.reshape(-1), places.ravel(), np.stack(columns, axis=1).ravel())
    touched(len(rows))


def pieces(count: int, size: int | None = None) -> Iterator[slice]:
    """Go through so many rows, in order and in pieces; their pages are let go of on the way."""
    size = size or PIECE
    for first in range(0, count, size):
        yield slice(first, min(count, first + size))
        released()


def let_go_of(held: mmap.mmap) -> mmap.mmap:
    """Have the pages of a file that is mapped, and shared with it, let go of with all others."""
    _maps.add(held)
    return held


def mapped(file: IO[bytes]) -> mmap.mmap:
    """A file to be read, whose pages are let go of with all others."""
    return let_go_of(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def touched(rows: int) -> None:
    """Say that so many rows were read or written, each somewhere in an array of this kind."""
    global _touched
    _touched += rows * AROUND
    if _touched > MAPPED:
        released()


def released() -> None:
    """Let go of all pages; nothing is lost, what is wanted again comes back from its file."""
    global _touched
    _touched = 0
    if hasattr(mmap, "MADV_DONTNEED"):
        for held in list(_maps):
            held.madvise(mmap.MADV_DONTNEED)


def _mapped(file: int, size: int) -> mmap.mmap:
    held = mmap.mmap(file, size)
    if hasattr(mmap, "MADV_RANDOM"):
        held.madvise(mmap.MADV_RANDOM)  # nothing is read ahead
    return let_go_of(held)


def resident() -> tuple[int, int]:
    """Bytes of memory that this process takes now, and that it has taken at its most.

    0 where nobody tells.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        lines = dict(line.split(":", 1) for line in text.splitlines())
        now, most = (int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError, ValueError):
        return 0, 0
    return now, most


def _make_room(file: int, size: int) -> None:
    """Fill a file with zeros.

    A map of a file with holes dies where a disk is full. And the kernel keeps a file in pieces as
    they were written, and maps the piece that a row is in: large ones are found up to ten times as
    fast as what comes in through a map, but of a large array they are soon all of it.
    """
    zeros, left = memoryview(bytes(min(size, 2**22 if size <= TOGETHER else AROUND))), size
    while left:
        left -= os.write(file, zeros[:left])
