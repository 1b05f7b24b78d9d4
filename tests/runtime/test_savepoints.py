"""Savepoints: the newest that is good is used, and writing them takes little of the time."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate.errors import RunError
from curate.runtime import savepoints
from curate.runtime.files import read_sealed, write_sealed
from curate.runtime.savepoints import Savepoints

Damage = Callable[[Path], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three savepoints were written, of which two are left."""
    points = Savepoints(tmp_path / "score", "a run")
    assert points.newest() is None
    for number in (1, 2, 3):
        points.offer(lambda number=number: {"at": number, "state": torch.ones(300)}, due=True)  # type: ignore[misc]
    return tmp_path / "score"


def newest(folder: Path) -> list[Path]:
    """Files of savepoints, the newest first."""
    return sorted(folder.iterdir(), reverse=True)


def flip(path: Path, where: float = 0.5) -> None:
    """One bit of a byte."""
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)


def swap(folder: Path) -> None:
    one, other = newest(folder)
    one.rename(folder / "aside")
    other.rename(one)
    (folder / "aside").rename(other)


def from_another_run(folder: Path) -> None:
    path = newest(folder)[0]
    write_sealed(path, read_sealed(path) | {"run": "another"})


def something_else(folder: Path) -> None:
    shutil.copy(__file__, newest(folder)[0])


def first(damage: Damage) -> Damage:
    return lambda folder: damage(newest(folder)[0])


def each(damage: Damage) -> Damage:
    return lambda folder: [damage(path) for path in newest(folder)]


@pytest.mark.parametrize(
    ("damage", "used", "warned"),
    [
        pytest.param(lambda _: None, 3, [], id="none"),
        pytest.param(
            first(lambda p: p.write_bytes(p.read_bytes()[:-9])), 2, ["cannot be read"], id="cut"
        ),
        pytest.param(first(lambda p: p.write_bytes(b"")), 2, ["cannot be read"], id="empty"),
        pytest.param(first(lambda p: flip(p, 0.9)), 2, ["is damaged"], id="a bit of its numbers"),
        pytest.param(first(lambda p: flip(p, 0.001)), 2, ["cannot be read"], id="of its header"),
        pytest.param(first(Path.unlink), 2, [], id="gone"),
        pytest.param(something_else, 2, ["cannot be read"], id="a file of something else"),
        pytest.param(
            lambda f: write_sealed(newest(f)[0], [1, 2]), 2, ["is another run's"], id="a list"
        ),
        pytest.param(from_another_run, 2, ["is another run's"], id="another run's"),
        pytest.param(swap, None, ["is not what its name says"] * 2, id="two swapped"),
        pytest.param(each(flip), None, ["is damaged"] * 2, id="both damaged"),
        pytest.param(each(Path.unlink), None, [], id="both gone"),
    ],
)
def test_the_newest_that_is_good_is_used(
    folder: Path, damage: Damage, used: int | None, warned: list[str]
) -> None:
    damage(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tree = Savepoints(folder, "a run").newest()
    assert [str(one.message).split(";")[0].split("safetensors ")[1] for one in caught] == warned
    assert (tree and tree["at"]) == used
    if tree is not None:
        assert np.array_equal(tree["state"], np.ones(300))


def test_numbers_go_on_where_they_were(folder: Path) -> None:
    Savepoints(folder, "a run").offer(dict, due=True)
    assert [path.name for path in newest(folder)] == ["000004.safetensors", "000003.safetensors"]


def test_one_that_cannot_be_written_leaves_those_before(folder: Path) -> None:
    before = {path: path.read_bytes() for path in newest(folder)}

    def full() -> Any:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"000004\.safetensors: cannot be written: .* make room the"):
        Savepoints(folder, "a run").offer(full, due=True)
    assert {path: path.read_bytes() for path in newest(folder)} == before


def test_they_take_no_more_of_the_time_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock of our own: each takes 1 s to write, and one is offered every second."""
    now = [0.0]
    monkeypatch.setattr(savepoints.time, "monotonic", lambda: now[0])

    def write(path: Path, tree: Any) -> None:
        path.touch()
        now[0] += 1

    monkeypatch.setattr(savepoints, "write_sealed", write)
    points, written = Savepoints(tmp_path / "scores", "a run"), []
    for _ in range(1000):
        now[0] += 1
        points.offer(lambda: written.append(now[0]))
    assert len(list((tmp_path / "scores").iterdir())) == 2
    assert len(written) == pytest.approx(savepoints.SHARE * now[0], rel=0.1)
