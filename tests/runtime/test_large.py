"""Arrays as long as the data."""

import errno
import gc
import os
from pathlib import Path

import numpy as np
import pytest

from curate.runtime import large as room
from curate.runtime.large import (
    Growing,
    add_to_rows,
    filled,
    held,
    large,
    pieces,
    released,
    resident,
    touched,
)


def mapped() -> int:
    """Bytes of files that this process has mapped and in memory, in all."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssShmem")))


def test_small_ones_are_in_memory_and_large_ones_in_a_file_without_a_name(tmp_path: Path) -> None:
    small, big = large(10, np.int32, tmp_path), large((room.SMALL, 2), np.uint8, tmp_path)
    assert small.base is None
    assert big.base is not None
    assert (small.shape, big.shape) == ((10,), (room.SMALL, 2))
    assert not small.any()
    assert not big.any()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_what_is_let_go_of_is_there_again(tmp_path: Path) -> None:
    before, maps = mapped(), len(room._maps)
    numbers = large(2**23, np.int64, tmp_path)
    numbers[:] = np.arange(len(numbers))
    assert mapped() - before > 60_000
    released()
    assert mapped() - before < 10_000
    assert np.array_equal(numbers[:: 2**20], np.arange(0, 2**23, 2**20))
    released()
    for row in range(0, 2**23, 2**9):
        assert numbers[row] == row
        touched(1)
    assert mapped() - before < 2 * room.MAPPED // 1024
    del numbers
    gc.collect()
    assert len(room._maps) <= maps


def test_sums_of_rows_are_those_of_adding_one_by_one() -> None:
    sums, rows = large((5, 3), np.float64), np.array([4, 0, 4])
    add_to_rows(sums, rows, [np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.25, 0.125])])
    expected = np.zeros((5, 3))
    expected[4], expected[0] = [4.0, 0.625, 0], [2.0, 0.25, 0]
    assert np.array_equal(sums, expected)
    assert np.array_equal(filled(sums), sums)
    assert [*pieces(5, 2)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert held([10, room.SMALL + 1]) == 10 + min(room.MAPPED, room.SMALL + 1)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_what_a_process_takes_is_told() -> None:
    now, most = resident()
    assert 10 * 2**20 < now <= most


def test_no_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=str(tmp_path)):
        large(room.SMALL + 1, np.uint8, tmp_path)


@pytest.mark.parametrize("small", [0, 25, 2**20])
def test_what_grows_is_one_array_in_the_end(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SMALL", small)
    growing, parts = Growing(np.int32), [[1, 2], [], [3, 4, 5, 6], [7]]
    for part in parts:
        growing.append(part)
    whole = growing.array()
    assert whole.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert whole.dtype == np.int32
    whole[0] = 9
    released()
    assert whole[0] == 9
    assert Growing(np.int64).array().shape == (0,)


def test_pieces_are_all_rows_in_order() -> None:
    assert [(part.start, part.stop) for part in pieces(7, 3)] == [(0, 3), (3, 6), (6, 7)]
    assert not [*pieces(0)]
