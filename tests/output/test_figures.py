"""Figures: marks are where their numbers are, and words say what they show."""

import base64

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from curate.output.figures import (
    DROPPED,
    KEPT,
    Figure,
    course,
    over_training,
    promises,
    retrained,
    scores,
    trust_ratio,
)
from curate.output.saved_run import Metric, Retrained
from tests.output.made import WINDOWS

WINDOWS_TABLE = pl.DataFrame(WINDOWS)


def drawn(figure: Figure | None) -> Axes:
    assert figure is not None
    axes = Canvas().subplots()
    figure.draw(axes)
    return axes


def line(axes: Axes, label: str) -> np.ndarray:  # type: ignore[type-arg]
    (found,) = (own for own in axes.lines if own.get_label() == label)
    return np.asarray(found.get_xydata())


def choice(name: str, *losses: float) -> Retrained:
    loss = Metric(mean=float(np.mean(losses)), std=float(np.std(losses)), values=list(losses))
    return Retrained(trained_on=name, rows=3, loss=loss)  # type: ignore[call-arg]


def test_a_dot_of_promises_is_at_predicted_and_realised() -> None:
    figure = promises(WINDOWS_TABLE)
    assert figure is not None
    np.testing.assert_allclose(line(drawn(figure), "a window"), [(-0.2, -0.1), (-0.1, -0.08)])
    assert trust_ratio(WINDOWS_TABLE) == pytest.approx((0.5 + 0.8) / 2)
    assert "0.65. Rows dropped together did less" in figure.caption
    assert figure.alt == (
        "2 windows: changes predicted from −0.2 to −0.1, and realised from −0.1 to −0.08."
    )


def test_the_course_has_both_ends_of_every_window() -> None:
    figure = course(WINDOWS_TABLE)
    assert figure is not None
    axes = drawn(figure)
    np.testing.assert_allclose(line(axes, "on everything"), [(4, 1.5), (8, 0.75), (10, 0.5)])
    np.testing.assert_allclose(line(axes, "on what was kept"), [(4, 1.4), (8, 0.67)])
    assert "better in 2 of 2 windows" in figure.caption
    assert "on everything: 1.5 at first, 0.5 at last" in figure.alt
    without = course(WINDOWS_TABLE.with_columns(realised=pl.lit(None, pl.Float64)))
    assert without is not None
    assert "not measured" in without.caption
    (only,) = drawn(without).lines
    assert (only.get_label(), only.get_color()) == ("on everything", DROPPED)


def test_a_course_that_falls_far_is_on_a_log_scale() -> None:
    assert drawn(course(WINDOWS_TABLE)).get_yscale() == "linear"
    far = WINDOWS_TABLE.with_columns(target_loss=pl.Series([50.0, 5.0, 1.0]))
    assert drawn(course(far)).get_yscale() == "log"


def test_influence_and_its_error_are_in_the_middle_of_every_window() -> None:
    table = WINDOWS_TABLE.with_columns(error=pl.Series([1e-4, None, 0.0]))
    axes = drawn(over_training(table))
    np.testing.assert_allclose(
        line(axes, "mean size of an influence"), [(2, 2e-3), (6, 1e-3), (9, 1e-3)]
    )
    np.testing.assert_allclose(line(axes, "its expected error"), [(2, 1e-4)])
    (only,) = drawn(over_training(table.drop("error"))).lines
    assert only.get_color() == KEPT
    assert over_training(table.with_columns(signal=0.0, error=0.0)) is None


def test_bars_of_the_scores_are_all_rows_and_the_cut_is_between() -> None:
    values = np.random.default_rng(0).normal(size=500)
    table = pl.DataFrame({"score": values, "kept": values > 0.3})
    figure = scores(table)
    axes = drawn(figure)
    for color, side in ((KEPT, True), (DROPPED, False)):
        heights = [
            bar.get_height()
            for bar in axes.patches
            if isinstance(bar, Rectangle) and to_hex(bar.get_facecolor()) == color
        ]
        assert sum(heights) == (table["kept"] == side).sum()
    (cut,) = axes.lines
    assert np.asarray(cut.get_xdata())[0] == min(values[values > 0.3])
    assert figure is not None
    assert f"{(values > 0.3).sum()} rows kept" in figure.alt
    shared = scores(table.with_columns(kept=pl.Series(np.arange(500) % 2 == 0)))
    assert shared is not None
    assert len(drawn(shared).lines) == 0
    assert "no single cut" in shared.caption
    everything = scores(table.with_columns(kept=True))
    assert len(drawn(everything).lines) == 0


def test_choices_are_in_the_order_of_their_loss() -> None:
    own = choice("own", 0.3, 0.5)
    figure = retrained([own, choice("everything", 0.9, 1.1), choice("best", 0.1, 0.1)])
    axes = drawn(figure)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["best", "own", "everything"]
    dots = [np.asarray(dot.get_xydata())[0] for dot in axes.lines]
    np.testing.assert_allclose(dots, [(0.1, 0), (0.4, 1), (1.0, 2)])
    assert [dot.get_color() for dot in axes.lines] == [DROPPED, KEPT, DROPPED]
    assert axes.yaxis_inverted()  # the best at the top
    assert figure is not None
    assert figure.alt == "Test loss by choice: best 0.100, own 0.400, everything 1.000."


def test_a_picture_is_drawn_again_to_the_byte() -> None:
    figure = course(WINDOWS_TABLE)
    assert figure is not None
    kind, _, data = figure.picture.partition(";base64,")
    assert kind == "data:image/svg+xml"
    svg = base64.b64decode(data).decode()
    assert svg.startswith("<?xml")
    assert "optimizer step" in svg  # as text, which is small and sharp
    assert "dc:date" not in svg
    assert figure.picture == f"{kind};base64,{data}"


def test_windows_without_numbers_make_no_figure() -> None:
    none = pl.DataFrame()
    assert course(none) is promises(none) is over_training(none) is retrained([]) is None
    assert trust_ratio(none) is None
    constant = pl.DataFrame({"score": [0.0, 0.0], "kept": [True, False]})
    assert scores(constant) is None
