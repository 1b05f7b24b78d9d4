"""Arrays that took long to make, kept in a file for the next time they are wanted."""

import json
import mmap
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from curate.runtime.files import DamagedError, checksum, save_tensors, write_whole
from curate.runtime.large import Array, let_go_of

Arrays = Mapping[str, Array]
"""By name, each of one dimension."""
CODES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"I64": np.dtype("int64"), "I32": np.dtype("int32"), "BOOL": np.dtype("bool")}
)
"""What safetensors calls the types that there are."""
UNUSED = 30 * 24 * 3600
"""Seconds after which a file that nobody reads is dropped, as another one is written."""


def kept(path: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in the file at `path`; those that `make` gives if it has none, then kept there.

    Of several processes that want them at once, one makes them. A damaged file is made anew, one
    not read for `UNUSED` seconds is dropped when another is written; nothing is kept in a folder
    that cannot be written.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        return make()
    try:
        return read_arrays(path)
    except DamagedError:
        arrays = make()
        with suppress(OSError):
            write_arrays(path, arrays)
            _drop_unused(path.parent)
        return arrays
    finally:
        lock.release()


def _drop_unused(folder: Path) -> None:
    for path in folder.iterdir():
        if path.stat().st_mtime < time.time() - UNUSED:
            path.unlink()


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write arrays to a file of safetensors, piece by piece, under a checksum.

    Raises:
        OSError: it cannot be written; what was there before still is.
    """
    tensors = _tensors(arrays)
    metadata = {"checksum": str(checksum(tensors))}
    write_whole(path, lambda part: save_tensors(tensors, part, metadata))


def read_arrays(path: Path) -> Arrays:
    """The arrays that `write_arrays` wrote; they stay in the file, see `large`.

    Raises:
        DamagedError: the file is not there, or not what was written.
    """
    arrays = dict[str, Array]()
    try:
        os.utime(path)
        with path.open("rb") as file:
            # private, and nobody writes: its pages come back from the file
            held = let_go_of(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        start = 8 + int.from_bytes(held[:8], "little")
        header = json.loads(held[8:start])
        expected = header.pop("__metadata__")["checksum"]
        for name, entry in header.items():
            first, (count,) = entry["data_offsets"][0], entry["shape"]
            arrays[name] = np.frombuffer(held, CODES[entry["dtype"]], count, start + first)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"{path} cannot be read") from error
    size = start + sum(array.nbytes for array in arrays.values())
    if size != len(held) or str(checksum(_tensors(arrays))) != expected:
        raise DamagedError(f"{path} is damaged")
    return arrays


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
