"""Arrays kept in a file: the same again, made once, and made anew where the file is damaged."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from curate.runtime import arrays as module
from curate.runtime.arrays import Arrays, kept, read_arrays, write_arrays
from curate.runtime.files import DamagedError

MADE = {
    "wide": np.arange(200_000, dtype=np.int64),
    "odd": np.array([True, False, True]),
    "ids": np.arange(5, dtype=np.int32),
    "none": np.zeros(0, dtype=np.int32),
}


def same(found: Arrays) -> bool:
    return found.keys() == MADE.keys() and all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype
        for name, array in MADE.items()
    )


def test_what_is_written_is_read_again_and_is_a_file_of_safetensors(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.safetensors", MADE)
    assert same(read_arrays(tmp_path / "a.safetensors"))
    assert same(safetensors.numpy.load_file(tmp_path / "a.safetensors"))


def damaged(content: bytes) -> Iterator[bytes]:
    yield b""
    yield content[:4]
    yield content[:-1]
    yield content + b"x"
    yield b"\xff" * 8 + content[8:]
    yield content.replace(b"I32", b"F64")
    yield content.replace(b"checksum", b"checksun")
    for place in (20, len(content) // 2, len(content) - 1):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_damaged_file_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(DamagedError):
        read_arrays(path)
    write_arrays(path, MADE)
    content = path.read_bytes()
    for other in damaged(content):
        path.write_bytes(other)
        with pytest.raises(DamagedError):
            read_arrays(path)
        assert same(kept(path, lambda: MADE))
        assert path.read_bytes() == content


def test_of_several_that_want_them_one_makes_them(tmp_path: Path) -> None:
    made, found = [], []

    def make() -> Arrays:
        made.append(1)
        time.sleep(0.1)
        return MADE

    path = tmp_path / "folder" / "a.safetensors"
    threads = [threading.Thread(target=lambda: found.append(kept(path, make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 4
    assert all(map(same, found))


def test_a_file_that_nobody_reads_is_dropped_one_day(tmp_path: Path) -> None:
    old, read = tmp_path / "old.safetensors", tmp_path / "read.safetensors"
    for path in (old, read):
        kept(path, lambda: MADE)
        os.utime(path, (0, time.time() - module.UNUSED - 1))
    kept(read, lambda: MADE)
    kept(tmp_path / "new.safetensors", lambda: MADE)
    assert not old.exists()
    assert read.exists()


def test_nothing_is_kept_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    assert same(kept(tmp_path / "file" / "a.safetensors", lambda: MADE))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_whole", full)
    assert same(kept(tmp_path / "a.safetensors", lambda: MADE))
    assert not (tmp_path / "a.safetensors").exists()


def test_what_made_them_may_fail(tmp_path: Path) -> None:
    def fail() -> Arrays:
        raise ValueError("no")

    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="no"):
        kept(path, fail)
    assert same(kept(path, lambda: MADE))
