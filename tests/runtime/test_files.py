"""Files are whole and hold what was written, or are not used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.runtime.files import (
    DamagedError,
    checksum,
    digest_of,
    read_sealed,
    write_sealed,
    write_whole,
    write_whole_text,
)

BASE = torch.arange(12.0)
TREE: dict[str, Any] = {
    "plain": {"a": 1, "b": [0.1, None, True, "ä"], "empty": []},
    "tensors": [BASE, BASE[3:7], BASE.view(3, 4).T, torch.zeros(0), torch.tensor(2.5)],
    "types": [torch.tensor([1], dtype=t) for t in (torch.bfloat16, torch.int64, torch.bool)],
    "arrays": {"x": np.arange(3) / 7, "y": np.array([True, False])},
    "twice": [BASE, BASE],
}


def test_a_sealed_tree_reads_back_bit_for_bit_in_memory_of_its_own(tmp_path: Path) -> None:
    write_sealed(tmp_path / "tree", TREE)
    tree = read_sealed(tmp_path / "tree")
    assert tree["plain"] == TREE["plain"]
    for name in ("tensors", "types", "twice"):
        for read, written in zip(tree[name], TREE[name], strict=True):
            assert read.dtype == written.dtype
            assert torch.equal(read, written)
    for name, written in TREE["arrays"].items():
        assert tree["arrays"][name].dtype == written.dtype
        assert np.array_equal(tree["arrays"][name], written)
    one, other = tree["twice"]
    one[0] = 9
    assert other[0] == BASE[0] == 0


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    path = tmp_path / "tree"
    write_sealed(path, {"a": torch.arange(5.0), "b": "text"})
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(DamagedError):
            read_sealed(path)
    path.write_bytes(content[:-1])
    with pytest.raises(DamagedError, match="cannot be read"):
        read_sealed(path)
    path.unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        read_sealed(path)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_whole_text(path, "first")

    def half(part: Path) -> None:
        part.write_text("sec")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, half)
    assert path.read_text() == "first"
    assert [*tmp_path.iterdir()] == [path]
    write_whole_text(path, "zweite Fassung: ä")
    assert path.read_text(encoding="utf-8") == "zweite Fassung: ä"


def test_a_checksum_is_of_names_shapes_types_and_bits() -> None:
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    others = [
        {"a": tensors["a"], "c": tensors["b"]},
        tensors | {"a": torch.zeros(3, 2)},
        tensors | {"a": torch.zeros(2, 3, dtype=torch.int32)},
        tensors | {"b": torch.tensor([1.0, 1.0 + 2**-23])},
    ]
    assert len({checksum(tensors), *map(checksum, others)}) == 5
    assert checksum(dict(reversed(tensors.items()))) == checksum(tensors)


def test_a_digest_is_of_values_in_their_order() -> None:
    assert digest_of([1, "a"]) == digest_of((1, "a"))
    assert len({digest_of(value) for value in ([1, 2], [2, 1], ["1", 2], {"1": 2})}) == 4
    assert len(digest_of(None)) == 16


def test_a_disk_that_is_full_is_told_with_the_path(tmp_path: Path) -> None:
    path = tmp_path / "file.json"

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: .*file\.json") as error:
        write_whole(path, full)
    assert (error.value.errno, error.value.filename) == (28, str(path))
    assert not list(tmp_path.iterdir())
