"""A loop that several processes train together, against one process with the whole batch."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from curate import read_log
from curate.integrations import witness
from tests.integrations import rank_cases, rank_frameworks
from tests.integrations.rank_cases import LOOPS, SHARDED, go_through

Process = subprocess.Popen[str]
MODULES: dict[str, Any] = {"loop": rank_cases, "framework": rank_frameworks}
Found = dict[str, dict[int, Path]]


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start(module: ModuleType, groups: dict[int, tuple[Path, list[str]]]) -> Process:
    """Groups of so many processes that each go through cases and leave something in a folder."""
    shared = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", module.__name__]
    for size, (folder, names) in groups.items():
        line += [free_port(), str(size), str(folder), json.dumps(names)]
    return subprocess.Popen(line, env=os.environ | shared, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Found:
    cases: dict[str, dict[int, list[str]]] = {
        "loop": {2: [*rank_cases.CASES], 3: [*LOOPS]},
        "framework": {2: [*rank_frameworks.CASES]},
    }
    found: Found = {
        kind: {size: tmp_path_factory.mktemp("ranks") for size in sizes}
        for kind, sizes in cases.items()
    }
    processes = [
        start(MODULES[kind], {size: (found[kind][size], sizes[size]) for size in sizes})
        for kind, sizes in cases.items()
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), "\n".join(told)[-6000:]
    return found


def left(folder: Path, name: str) -> list[dict[str, Any]]:
    files = sorted((folder / name.replace(" ", "_")).glob("?.json"))
    return [json.loads(path.read_text()) for path in files]


def logged(folder: Path, name: str) -> pl.DataFrame:
    return read_log(folder / name.replace(" ", "_") / "log")


OTHERWISE = {"lightning's own parts", "classifier, added up"}
"""Lightning shuffles; the Trainer's gradient is larger by the number of processes."""
FRAMEWORKS = [name for name in rank_frameworks.CASES if name not in OTHERWISE]
ALIKE = [
    *(("loop", size, name) for size in (2, 3) for name in LOOPS),
    *(("loop", 2, f"{name}, sharded") for name in SHARDED),
    *(("framework", 2, name) for name in FRAMEWORKS),
]


@pytest.mark.usefixtures("fresh_accelerate")
@pytest.mark.parametrize(("kind", "size", "name"), ALIKE)
def test_several_processes_decide_and_train_as_one(
    tmp_path: Path,
    together: Found,
    kind: str,
    size: int,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(witness, "SHARE", 1e9)
    for _ in go_through(MODULES[kind].CASES, tmp_path, [name]):
        pass
    (alone,), many = left(tmp_path, name), left(together[kind][size], name)
    assert "error" not in alone, alone
    assert len(many) == size
    for own in many:
        assert "error" not in own, own
        for one, other in zip(own["weights"], alone["weights"], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)
    expected, found = logged(tmp_path, name), logged(together[kind][size], name)
    same = ["window", "step", "batch", "position", "row", "kept"]
    assert found.select(same).equals(expected.select(same))
    for column in ("influence", "value", "weight", "predicted", "realized"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-5, atol=1e-12)


def test_where_a_process_ends_early_the_rest_goes_through_whole(together: Found) -> None:
    longer, shorter = left(together["loop"][2], "uneven")
    for found, whole in ((longer, [8, 8]), (shorter, [])):
        for epoch in found["seen"]:
            assert epoch[5:] == whole
    for one, other in zip(longer["seen"], shorter["seen"], strict=True):
        assert [a + b for a, b in zip(one[:5], other, strict=True)] == [8] * 5
    assert longer["steps"] == shorter["steps"] == [2, 2, 1] * 2
    assert None not in longer["realized"]
    assert longer["realized"] == shorter["realized"]


def test_dropout_of_each_process_is_followed(together: Found) -> None:
    for own in left(together["loop"][2], "dropout"):
        assert len(own["seen"]) == 12


def test_gradients_may_be_averaged_by_hand(together: Found) -> None:
    one, other = (own["weights"] for own in left(together["loop"][2], "by hand"))
    assert one == other


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no averaging",
            "SimulationError: step 0 of the loop, averaged over 2 processes: the gradient .* is",
        ),
        ("uneven, with a state", "UserError: .* optimizer of a process that ends early behind"),
        ("weights apart", "UserError: the 2 processes do not have the same weights and optimizer"),
        ("targets", "UserError: the 2 processes do not have the same targets .all of their rows"),
    ],
)
def test_what_is_not_one_training_is_refused(together: Found, name: str, message: str) -> None:
    for own in left(together["loop"][2], name):
        assert re.match(message, own["error"])


def test_lightning_gives_each_process_its_part(together: Found) -> None:
    found = left(together["framework"][2], "lightning's own parts")
    assert [own["length"] for own in found] == [4, 4]
    epochs = [[own["seen"][k : k + 4] for own in found] for k in (0, 4)]
    for epoch in epochs:
        rows = [row for own in epoch for step in own for row in step]
        assert len(rows) == len({*rows}) == 36
    assert epochs[0] != epochs[1]
    assert found[0]["weights"] == found[1]["weights"]


def test_the_trainers_own_sum_is_followed(together: Found) -> None:
    one, other = left(together["framework"][2], "classifier, added up")
    assert one["weights"] == other["weights"]
