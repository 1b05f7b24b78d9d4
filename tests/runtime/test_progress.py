"""Phases: seconds by name, and bars for those who look."""

import pytest

from curate.runtime import progress
from curate.runtime.progress import Phases, say


def test_seconds_add_up_by_name_even_if_a_phase_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.5, 2.0, 4.0, 10.0, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    phases = Phases()
    with phases.phase("score"):
        pass
    with pytest.raises(KeyError), phases.phase("score"):
        raise KeyError
    with phases.phase("write"):
        pass
    assert phases.seconds == {"score": 3.5, "write": 1.0}


@pytest.mark.parametrize(("bars", "total"), [(False, 3), (True, 0), (True, 3)])
def test_only_a_phase_of_some_length_has_a_bar(
    bars: bool, total: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Phases(bars=bars).phase("retrain", total) as tick:
        for _ in range(total):
            tick()
    assert ("retrain" in capsys.readouterr().err) == (bars and total > 0)


def test_a_line_that_is_said_stands_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Phases(bars=True).phase("pilots", 3) as tick:
        tick()
        say("pilot lr 0.1: done")
        tick()
    assert "\rpilot lr 0.1: done\n" in capsys.readouterr().err  # not after the bar, on its line
