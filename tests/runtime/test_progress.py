"""Phases: seconds by name, and bars for those who look."""

import pytest

from curate.runtime import progress
from curate.runtime.progress import Outlook, Phases, say


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


def outlook() -> Outlook:
    return Outlook({"score": 10.0, "train": 20.0, "judge": 40.0, "write": 1.0}, ("train", "judge"))


def test_what_was_foreseen_is_what_is_left() -> None:
    foreseen = outlook()
    assert foreseen.left("score", 0.0, 0.0, 99.0) == pytest.approx(71.0)
    assert foreseen.left("score", 0.5, 5.0, 10.0) == pytest.approx(66.0)
    foreseen.finish(
        "score", 30.0
    )  # three times what was foreseen, which says nothing of the others
    assert foreseen.left("train", 0.0, 0.0, 99.0) == pytest.approx(61.0)


def test_phases_of_the_same_work_are_late_together() -> None:
    foreseen = outlook()
    foreseen.finish("score", 10.0)
    half = foreseen.left("train", 0.5, 30.0, 60.0)  # three times as slow as foreseen
    assert 30.0 + 2.0 * 40.0 < half < 30.0 + 3.0 * 40.0 + 1.0
    foreseen.finish("train", 60.0)
    assert 0.8 * 121.0 < foreseen.left("judge", 0.0, 0.0, 0.0) < 121.0


def test_a_phase_that_was_not_foreseen_goes_by_its_own_pace() -> None:
    assert Outlook({}).left("pilots", 0.25, 10.0, 40.0) == pytest.approx(30.0)


def bars_of(
    monkeypatch: pytest.MonkeyPatch, ticks: list[tuple[float, int]], total: int
) -> list[str]:
    """What the bar says after each of some ticks, at these times."""
    now, said = 0.0, list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress.tqdm, "set_description_str", lambda _, text: said.append(text))
    with Phases(bars=True).phase("score", total) as tick:
        for now, count in ticks:  # noqa: B007
            tick(count)
    return said


def test_a_bar_says_how_long_it_takes_still(monkeypatch: pytest.MonkeyPatch) -> None:
    said = bars_of(monkeypatch, [(k, 1) for k in range(1, 51)], 100)
    assert said[-1] == "score: 50 of 100 steps; 50 s gone, 50 s left"


def test_what_a_run_before_has_done_does_not_count_as_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    said = bars_of(monkeypatch, [(0.2, 80), *((k, 1) for k in range(10, 110, 10))], 100)
    assert said[-1] == "score: 90 of 100 steps; 2 min gone, 2 min left"


def test_a_line_that_is_said_stands_above_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    with Phases(bars=True).phase("pilots", 3) as tick:
        tick()
        say("pilot lr 0.1: done")
        tick()
    assert "\rpilot lr 0.1: done\n" in capsys.readouterr().err  # not after the bar, on its line
