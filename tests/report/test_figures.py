"""Figures: marks are where their numbers are."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from curate.report.canvas import Axis, Figure
from curate.report.figures import course, promises, retrained, scores, trust_ratio
from curate.report.record import Metric, Retrained
from tests.report.made import WINDOWS

WINDOWS_TABLE = pl.DataFrame(WINDOWS)


def value(axis: Axis, place: float) -> float:
    """Back from a place to what it stands for."""
    share = (place - axis.start) / (axis.end - axis.start)
    return axis.low + share * (axis.high - axis.low)


def marks(figure: Figure | None, shape: str, look: str | None = None) -> list[Any]:
    assert figure is not None
    return [m for m in figure.marks if m.shape == shape and look in (None, m.look)]


def test_a_dot_of_promises_is_at_predicted_and_realised() -> None:
    figure = promises(WINDOWS_TABLE)
    assert figure is not None
    found = [
        (value(figure.x, m.numbers[0]), value(figure.y, m.numbers[1])) for m in marks(figure, "dot")
    ]
    np.testing.assert_allclose(found, [(-0.2, -0.1), (-0.1, -0.08)], atol=1e-3)
    assert trust_ratio(WINDOWS_TABLE) == pytest.approx((0.5 + 0.8) / 2)
    assert "0.65. Rows dropped together did less" in figure.caption


def test_the_course_has_both_ends_of_every_window() -> None:
    figure = course(WINDOWS_TABLE)
    assert figure is not None
    for look, expected in (
        ("dropped", [(4, 1.5), (8, 0.75), (10, 0.5)]), ("kept", [(4, 1.4), (8, 0.67)]),
    ):  # fmt: skip
        found = [
            (value(figure.x, m.numbers[0]), value(figure.y, m.numbers[1]))
            for m in marks(figure, "dot", look)
        ]
        np.testing.assert_allclose(found, expected, atol=0.02)
    assert "better in 2 of 2 windows" in figure.caption
    without = course(WINDOWS_TABLE.with_columns(realised=pl.lit(None, pl.Float64)))
    assert without is not None
    assert "not measured" in without.caption


def test_bars_of_the_scores_are_all_rows_and_the_cut_is_between() -> None:
    values = np.random.default_rng(0).normal(size=500)
    table = pl.DataFrame({"score": values, "kept": values > 0.3})
    figure = scores(table)
    assert figure is not None
    for look in ("kept", "dropped"):
        heights = sum(m.numbers[3] for m in marks(figure, "bar", look))
        rows = heights / (figure.y.start - figure.y.end) * figure.y.high
        assert rows == pytest.approx((table["kept"] == (look == "kept")).sum(), abs=3)
        counted = sum(int(m.title.split(": ")[1].split()[0]) for m in marks(figure, "bar", look))
        assert counted == (table["kept"] == (look == "kept")).sum()
    (cut,) = marks(figure, "rule", "cut")
    assert value(figure.x, cut.numbers[0]) == pytest.approx(min(values[values > 0.3]), abs=0.02)
    shared = scores(table.with_columns(kept=pl.Series(np.arange(500) % 2 == 0)))
    assert shared is not None
    assert marks(shared, "rule", "cut") == []
    assert "no single cut" in shared.caption


def test_choices_are_in_the_order_of_their_loss() -> None:
    def row(name: str, *losses: float) -> Retrained:
        loss = Metric(mean=float(np.mean(losses)), std=float(np.std(losses)), values=list(losses))
        return Retrained(trained_on=name, rows=3, loss=loss)  # type: ignore[call-arg]

    figure = retrained([row("own", 0.3, 0.5), row("everything", 0.9, 1.1), row("best", 0.1, 0.1)])
    assert figure is not None
    assert [name for _, name in figure.names] == ["best", "own", "everything"]
    places = [value(figure.x, m.numbers[0]) for m in marks(figure, "dot")]
    np.testing.assert_allclose(places, [0.1, 0.4, 1.0], atol=0.01)
    assert [m.look for m in marks(figure, "dot")] == ["dropped", "kept", "dropped"]


@pytest.mark.parametrize(
    ("low", "high", "log"),
    [(0, 1.3, False), (-2e-5, 1e-5, False), (0, 123_456, False), (0.2, 0.21, False),
     (1e-5, 3e-4, True), (1e-9, 10, True), (3e-4, 5e-4, True), (-5, 0, False)],
)  # fmt: skip
def test_ticks_are_few_round_and_in_place(low: float, high: float, log: bool) -> None:
    axis = Axis(low, high, 50, 400, "loss", log)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 10 or (low, high) == (3e-4, 5e-4)
    scale = 10.0**axis.unit.power
    for place, name in ticks:
        assert 50 - 0.1 <= place <= 400.1
        number = float(name.replace("−", "-").replace(",", "").split(" ×")[0])
        if "×" not in name:
            assert axis.at(number * scale) == pytest.approx(place, abs=0.2)
    assert len({name for _, name in ticks}) == len(ticks)


def test_windows_without_numbers_make_no_figure() -> None:
    none = pl.DataFrame()
    assert course(none) is promises(none) is retrained([]) is None
    assert trust_ratio(none) is None
    constant = pl.DataFrame({"score": [0.0, 0.0], "kept": [True, False]})
    assert scores(constant) is None
