"""Figures: marks are where their numbers are, and words say what they show."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle, StepPatch
from PIL import Image

from curate.output.figures import (
    DROPPED,
    KEPT,
    Figure,
    course,
    over_training,
    plot_tuning,
    plot_verification,
    promises,
    retrained,
    scores,
)
from curate.output.scores import SavedScores
from tests.output.made import WINDOWS, lines

WINDOWS_TABLE = pl.DataFrame(WINDOWS)


def drawn(figure: Figure | None) -> Axes:
    assert figure is not None
    axes = Canvas().subplots()
    figure.draw(axes)
    return axes


def line(axes: Axes, label: str) -> np.ndarray:  # type: ignore[type-arg]
    (line,) = (line for line in axes.lines if line.get_label() == label)
    return np.asarray(line.get_xydata())


def choice(name: str, *losses: float) -> dict[str, Any]:
    loss = {"mean": float(np.mean(losses)), "std": float(np.std(losses)), "values": list(losses)}
    return {"trained_on": name, "rows": 3, "loss": loss}


def test_a_dot_of_promises_is_at_predicted_and_realized() -> None:
    figure = promises(WINDOWS_TABLE)
    assert figure is not None
    np.testing.assert_allclose(line(drawn(figure), "a window"), [(-0.2, -0.1), (-0.1, -0.08)])
    assert "0.65. Rows dropped together did less" in figure.caption
    assert figure.alt == (
        "2 windows: changes predicted from −0.2 to −0.1, and realized from −0.1 to −0.08."
    )


def test_the_course_has_both_ends_of_every_window() -> None:
    figure = course(WINDOWS_TABLE)
    assert figure is not None
    axes = drawn(figure)
    np.testing.assert_allclose(line(axes, "on everything"), [(4, 1.5), (8, 0.75), (10, 0.5)])
    np.testing.assert_allclose(line(axes, "on what was kept"), [(4, 1.4), (8, 0.67)])
    assert "better in 2 of 2 windows" in figure.caption
    assert "on everything: 1.5 at first, 0.5 at last" in figure.alt


@pytest.mark.parametrize("realized", [0.0, None])
def test_the_course_of_a_run_that_dropped_nothing_is_one_line(realized: float | None) -> None:
    """As with `keep: auto`, which drops nothing while it scores."""
    figure = course(WINDOWS_TABLE.with_columns(realized=pl.lit(realized, pl.Float64)))
    assert figure is not None
    assert "nothing was dropped" in figure.caption
    (only,) = drawn(figure).lines
    assert only.get_label() == "on everything"


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
    table = lines(values, values > 0.3)
    figure = scores(SavedScores(table))
    axes = drawn(figure)
    for color, side in ((KEPT, True), (DROPPED, False)):
        (steps,) = [
            patch.get_data()
            for patch in axes.patches
            if isinstance(patch, StepPatch) and to_hex(patch.get_facecolor()) == color
        ]
        assert (steps.values - steps.baseline).sum() == (table["kept"] == side).sum()
    (cut,) = axes.lines
    assert np.asarray(cut.get_xdata())[0] == min(values[values > 0.3])
    assert figure is not None
    assert f"{(values > 0.3).sum()} rows kept" in figure.alt
    shared = scores(SavedScores(lines(values, np.arange(500) % 2 == 0)))
    assert shared is not None
    assert len(drawn(shared).lines) == 0
    assert "no single cut" in shared.caption
    everything = scores(SavedScores(lines(values, values < 99)))
    assert len(drawn(everything).lines) == 0


def test_choices_are_in_the_order_of_their_loss() -> None:
    kept = choice("kept", 0.3, 0.5)
    figure = retrained([kept, choice("everything", 0.9, 1.1), choice("best", 0.1, 0.1)])
    axes = drawn(figure)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["best", "kept", "everything"]
    dots = [np.asarray(dot.get_xydata())[0] for dot in axes.lines]
    np.testing.assert_allclose(dots, [(0.1, 0), (0.4, 1), (1.0, 2)])
    assert [dot.get_color() for dot in axes.lines] == [DROPPED, KEPT, DROPPED]
    assert axes.yaxis_inverted()  # the best at the top
    assert figure is not None
    assert figure.alt == "Test loss by choice: best 0.100, kept 0.400, everything 1.000."


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
    assert scores(SavedScores(lines(np.zeros(2), np.array([True, False])))) is None


GRID = [(k, rate) for k in (1, 4, 16) for rate in (1e-3, 1e-2)]


def tuning(metric: str = "loss", best: float = 0.25) -> tuple[dict[str, Any], pl.DataFrame]:
    """A summary and a table of `curate tune`: one pair of each outcome, and a pilot."""
    outcomes = ["best", "failed", "beaten", "untried", "dropped", "untried"]
    values = [best, None, 0.5, None, None, None]
    lines = [{"horizon": None, "learning_rate": 1e-3, "outcome": "pilot", "value": 0.75}]
    for (k, rate), outcome, value in zip(GRID, outcomes, values, strict=True):
        line: dict[str, Any] = {"horizon": k, "learning_rate": rate, "outcome": outcome}
        lines.append(line | {"value": value, "error": 0.2 * k, "signal": 2.0})
    return {"metric": metric, "steps": 16}, pl.DataFrame(lines, infer_schema_length=None)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[Canvas]:
    """The canvases that were written to files, in order."""
    canvases: list[Canvas] = []
    write = Canvas.savefig

    def note(canvas: Canvas, *arguments: Any, **options: Any) -> None:
        canvases.append(canvas)
        write(canvas, *arguments, **options)

    monkeypatch.setattr(Canvas, "savefig", note)
    return canvases


@pytest.mark.parametrize(("metric", "best"), [("loss", 0.25), ("loss", 0.0), ("accuracy", 0.9)])
def test_a_tuning_shows_values_trust_and_the_best(
    tmp_path: Path, saved: list[Canvas], metric: str, best: float
) -> None:
    plot_tuning(*tuning(metric, best), tmp_path / "one.png")
    axes = saved[0].axes[0]
    texts = {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
        for text in axes.texts
    }
    assert texts == {
        (0, 0): f"{best:.3g} ★",
        (0, 1): "failed",
        (1, 0): "0.5",
        (1, 1): "±40 %",
        (2, 1): "±160 %",
    }
    (hatched,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
    assert hatched.get_xy() == (-0.5, 1.5)  # the pair that was dropped
    borders = sorted(np.asarray(line.get_xydata()).tolist() for line in axes.lines)
    assert borders == [[[-0.5, 1.5], [0.5, 1.5]], [[0.5, 1.5], [0.5, 2.5]]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "4", "full (16)"]
    (image,) = axes.images
    assert image.norm(0.5) != image.norm(best)
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.width > 100


def test_a_tuning_of_one_pair_is_drawn(tmp_path: Path) -> None:
    summary, table = tuning(best=0.0)
    plot_tuning(summary, table.filter(pl.col("outcome") == "best"), tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000


def verification(error: float = 0.1) -> pl.DataFrame:
    random = np.random.default_rng(0)
    predicted = random.normal(size=30)
    return pl.DataFrame(
        {
            "influence": predicted,
            "influence_sgd": random.normal(size=30),
            "actual": predicted + 0.01 * random.normal(size=30),
            "error": np.full(30, error),
        }
    )


@pytest.mark.parametrize("mistaken", [None, 0.25])
def test_a_verification_has_a_panel_for_each_way_of_scoring(
    tmp_path: Path, saved: list[Canvas], mistaken: float | None
) -> None:
    table = verification()
    plot_verification(table, 0.5, mistaken, tmp_path / "verify.png")
    titles = ["this run's scores: Spearman 0.500", "scored as SGD: Spearman 0.250"]
    panels = saved[0].axes
    assert [axes.get_title() for axes in panels] == titles[: len(panels)]
    assert len(panels) == (1 if mistaken is None else 2)
    for axes, column in zip(panels, ("influence", "influence_sgd"), strict=False):
        dots = np.asarray(axes.collections[-1].get_offsets())
        np.testing.assert_allclose(dots, table[column, "actual"])
    with Image.open(tmp_path / "verify.png") as image:
        assert image.size == ((676 if mistaken is None else 1248), 624)


def test_bars_are_drawn_where_an_error_is_known(tmp_path: Path, saved: list[Canvas]) -> None:
    for error in (0.5, float("nan")):
        plot_verification(verification(error), 0.5, None, tmp_path / "verify.png")
    with_bars, without = (len(canvas.axes[0].containers) for canvas in saved)
    assert (with_bars, without) == (1, 0)


def test_changes_that_are_all_the_same_are_drawn(tmp_path: Path) -> None:
    """As of a target that nothing reaches."""
    zeros = verification().select(pl.all() * 0.0)
    plot_verification(zeros, float("nan"), None, tmp_path / "verify.png")
    assert (tmp_path / "verify.png").stat().st_size > 1000
