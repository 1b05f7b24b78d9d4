"""Compressed files are unpacked by what they are, and not without a limit."""

import bz2
import gzip
from pathlib import Path

import pytest

from curate.datasets import streams
from curate.datasets.streams import open_bytes
from curate.errors import DataError


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress])
def test_what_a_file_starts_with_decides_whether_it_is_unpacked(pack, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(pack(b"one\ntwo\n"))
    with open_bytes(str(path)) as file:
        assert (file.peek(3)[:3], file.readline(), file.read()) == (b"one", b"one\n", b"two\n")


def test_parts_packed_one_by_one_are_read_to_the_last(tmp_path: Path) -> None:
    path = tmp_path / "rows.gz"
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    with open_bytes(str(path)) as file:
        assert file.read() == b"one\ntwo\n"
    path.write_bytes(gzip.compress(b"one\n")[:-4])
    with open_bytes(str(path)) as file, pytest.raises(OSError, match="Truncated"):
        file.read()


def test_a_bomb_is_left_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(b"x" * 3_000_000))
    monkeypatch.setattr(streams, "UNPACKED", 10_000)
    with open_bytes(str(path)) as file, pytest.raises(DataError, match="unpack to more than"):
        file.read()
    monkeypatch.setattr(streams, "TIMES", 2000)  # of deflate no more than 1032 come about
    with open_bytes(str(path)) as file:
        assert len(file.read()) == 3_000_000
