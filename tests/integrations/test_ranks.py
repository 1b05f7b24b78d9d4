"""A loop that several processes train together, against one process with the whole batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import read_log
from curate.integrations import witness
from tests.integrations import rank_cases
from tests.integrations.rank_cases import ALIKE, CASES, LOOPS, go_through


def run(folder: Path, size: int, names: list[str]) -> Path:
    """Go through cases in so many processes, as torchrun starts them."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    line = [sys.executable, "-m", rank_cases.__name__, str(folder), *names]
    processes = [
        subprocess.Popen(
            line,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]
    told = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * size, "\n".join(told)[-6000:]
    return folder


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {
        2: run(tmp_path_factory.mktemp("two"), 2, [*CASES]),
        3: run(tmp_path_factory.mktemp("three"), 3, [*LOOPS]),
    }


def left(folder: Path, name: str) -> list[dict[str, Any]]:
    files = sorted((folder / name.replace(" ", "_")).glob("?.json"))
    return [json.loads(path.read_text()) for path in files]


def logged(folder: Path, name: str) -> pl.DataFrame:
    return read_log(folder / name.replace(" ", "_") / "log")


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(
    ("name", "size"), [*((name, 2) for name in ALIKE), *((name, 3) for name in LOOPS)]
)
def test_several_processes_decide_and_train_as_one(
    tmp_path: Path, together: dict[int, Path], name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness, "SHARE", 1e9)
    for _ in go_through(tmp_path, [name]):
        pass
    (alone,), many = left(tmp_path, name), left(together[size], name)
    assert "error" not in alone, alone
    assert len(many) == size
    for own in many:
        assert "error" not in own, own
        for one, other in zip(own["weights"], alone["weights"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-9)
    expected, found = logged(tmp_path, name), logged(together[size], name)
    same = ["window", "step", "batch", "position", "row", "kept"]
    assert found.select(same).equals(expected.select(same))
    assert not found["kept"].all()
    for column in ("influence", "value", "weight", "predicted", "realized"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-5, atol=1e-12)


def test_where_a_process_ends_early_the_rest_goes_through_whole(together: dict[int, Path]) -> None:
    longer, shorter = left(together[2], "uneven")
    assert longer["seen"] == [[4, 4, 4, 4, 8, 8, 8]] * 2
    assert shorter["seen"] == [[4, 4, 4, 4, 8]] * 2
    assert longer["steps"] == shorter["steps"] == [2, 2] * 2
    assert None not in longer["realized"]
    assert longer["realized"] == shorter["realized"]
