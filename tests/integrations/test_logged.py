"""When entries of a log are written: at once where there is time, else together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curate import read_log
from curate.integrations import logged
from curate.integrations.logged import Logged
from curate.integrations.options import Options
from curate.integrations.window import Decision, WindowReport
from curate.output.audit_log import AuditLog

SIZE = 3


class Clock:
    """Time as it is told: writing takes a millisecond."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    write = AuditLog.candidates

    def slow(self: AuditLog, columns: Any) -> None:
        write(self, columns)
        clock.now += 1e-3

    monkeypatch.setattr(logged, "time", clock)
    monkeypatch.setattr(AuditLog, "candidates", slow)
    return clock


def enter(log: Logged, window: int) -> None:
    decision = Decision(torch.full((1, SIZE), float(window)), np.arange(3.0), np.array([1.0, 0, 1]))
    log.enter([(window, 2 * window, 0)], [np.arange(SIZE) + window], [decision])


def windows(folder: Path) -> list[int]:
    return read_log(folder)["window"].unique(maintain_order=True).to_list()


def test_windows_that_take_long_are_written_as_they_come_and_others_together(
    tmp_path: Path, clock: Clock
) -> None:
    log = Logged(Options(log=tmp_path, row="row"), ["target"])
    for window in range(4):  # writing takes less than one hundredth
        enter(log, window)
        assert windows(tmp_path) == [*range(window + 1)]
        clock.now += 0.11
    clock.now -= 0.09
    for window in range(4, 7):
        enter(log, window)
        assert windows(tmp_path) == [*range(4)]
        clock.now += 0.03
    enter(log, 7)
    assert windows(tmp_path) == [*range(8)]
    table = read_log(tmp_path)
    assert table["row"].to_list() == [window + k for window in range(8) for k in range(SIZE)]
    assert table["step"].to_list() == [2 * window for window in range(8) for _ in range(SIZE)]
    assert table["influence"].to_list() == [window for window in range(8) for _ in range(SIZE)]
    assert table["kept"].to_list() == [True, False, True] * 8


def test_what_waits_is_written_in_a_second_whatever_that_takes(
    tmp_path: Path, clock: Clock
) -> None:
    log = Logged(Options(log=tmp_path), ["target"])
    enter(log, 0)
    log._took = 60.0
    clock.now += 0.9
    enter(log, 1)
    assert windows(tmp_path) == [0]
    clock.now += 0.2
    enter(log, 2)
    assert windows(tmp_path) == [0, 1, 2]


def test_a_state_knows_of_nothing_that_is_not_on_disk(tmp_path: Path, clock: Clock) -> None:
    log = Logged(Options(log=tmp_path), ["target"])
    assert log.saved(0, settled=0) is None
    for window in range(3):
        enter(log, window)
        log.record(window, WindowReport(2 * window, 2, 3, 2, 0.1, 1.0, predicted=-0.2))
    assert windows(tmp_path) == [0]
    state = log.saved(3, settled=2)
    assert windows(tmp_path) == [0, 1, 2]
    assert read_log(tmp_path)["steps"].null_count() == 0
    enter(log, 3)
    log.flush()
    again = Logged(Options(log=tmp_path), ["target"])
    again.restore(state)
    again.record(2, WindowReport(4, 2, 3, 2, 0.1, 1.0, predicted=-0.2, realized=7.0))
    enter(again, 3)
    again.flush()
    table = read_log(tmp_path)
    assert table["window"].to_list() == [window for window in range(4) for _ in range(SIZE)]
    assert table["run"].unique().to_list() == [0]
    assert table.filter(window=2)["realized"].to_list() == [7.0] * SIZE


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    log = Logged(Options(), ["target"])
    enter(log, 0)
    log.record(0, WindowReport(0, 2, 3, 2, 0.1, 1.0, predicted=None))
    log.flush()
    assert log.saved(1, settled=1) is None
    assert not [*tmp_path.iterdir()]
