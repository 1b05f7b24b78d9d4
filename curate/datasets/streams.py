"""The bytes of a file, unpacked where it is compressed, and never without a limit."""

import io
import os
from types import MappingProxyType
from typing import Any

import pyarrow as pa
from typing_extensions import Buffer

from curate.errors import DataError

ENDINGS = (".gz", ".bz2", ".zst")
"""Endings that a compressed file may have behind its own."""
MAGIC = MappingProxyType({b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"})
MIB = 1 << 20
UNPACKED, TIMES = 256 * MIB, 100
"""A compressed file may become this large, or so many times as large as it is."""


def open_bytes(path: str) -> io.BufferedReader:
    """The bytes of a file to be read; what it starts with decides whether they are unpacked.

    Raises:
        OSError: it cannot be read. DataError: while reading, that it is not worth unpacking.
    """
    kind = _compression(path)
    if kind is None:
        return io.BufferedReader(io.FileIO(path), MIB)
    return io.BufferedReader(_Unpacked(path, kind), MIB)


def native_stream(path: str) -> pa.NativeFile:
    """The same bytes for a reader with threads of its own, and without a limit.

    What such a thread still reads when Python ends must not be a Python file: it would wait for
    an interpreter that is no more, and the process be aborted.
    """
    return pa.input_stream(path, compression=_compression(path))


def _compression(path: str) -> str | None:
    with open(path, "rb") as file:
        start = file.read(4)
    return next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None)


class _Unpacked(io.RawIOBase):
    def __init__(self, path: str, kind: str) -> None:
        self._path = path
        self._source: Any = pa.input_stream(path, compression=kind)
        self._size, self._read = os.path.getsize(path), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        part = self._source.read(len(view))
        view[: len(part)] = part
        self._read += len(part)
        if self._read > max(UNPACKED, TIMES * self._size):
            raise DataError(
                f"{self._path}: {self._size} bytes unpack to more than {self._read - len(part)}; "
                "unpack it first if that is meant."
            )
        return len(part)

    def close(self) -> None:
        self._source.close()
        super().close()
