"""The figures of a run, as marks on a canvas that the template draws."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from curate.report.canvas import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Figure, Mark
from curate.report.record import Retrained
from curate.report.run import Run
from curate.report.verdict import ADDS_UP, FAILS
from curate.report.words import cells, count, plain

BINS = 40
DENSE = 60
"""Points of a line above which they have no dots."""


def figures(run: Run) -> list[Figure]:
    """Every figure that the run has numbers for."""
    made = [
        retrained(run.provenance.evaluation),
        course(run.windows),
        scores(run.scores),
        over_training(run.windows),
        promises(run.windows),
    ]
    return [figure for figure in made if figure is not None]


def scores(table: pl.DataFrame) -> Figure | None:
    """Histogram of the scores, kept upon dropped."""
    values, kept = table["score"].to_numpy(), table["kept"].to_numpy()
    if not np.isfinite(values).all() or values.min() == values.max():
        return None
    edges = np.linspace(values.min(), values.max(), BINS + 1)
    each = {name: np.histogram(values[mask], edges)[0]
            for name, mask in (("dropped", ~kept), ("kept", kept))}  # fmt: skip
    x = Axis(float(edges[0]), float(edges[-1]), LEFT, WIDTH - RIGHT, "score")
    y = _vertical(0, float((each["dropped"] + each["kept"]).max()), "rows")
    marks, below = [], np.zeros(BINS)
    for look, counts in each.items():
        for k, own in enumerate(counts):
            if own:
                left, right = x.at(edges[k]), x.at(edges[k + 1])
                top, bottom = y.at(below[k] + own), y.at(below[k])
                title = (
                    f"{plain(edges[k])} to {plain(edges[k + 1])}: {count(int(own), 'row')} {look}"
                )
                marks.append(_bar(look, left + 0.5, top, right - left - 1, bottom - top, title))
        below += counts
    lowest, highest = values[kept].min(), values[~kept].max(initial=-math.inf)
    one_cut = lowest >= highest
    if one_cut and not kept.all():
        marks.append(_rule("cut", x.at(lowest), TOP, x.at(lowest), HEIGHT - BOTTOM))
    cut = (
        f"The cut is at {plain(float(lowest))}."
        if one_cut
        else "There is no single cut: the budget is shared out among groups."
    )
    return Figure(
        "scores", "Scores, and where the cut is",
        f"A score is in standard deviations of a step; the budget ranks it. {cut}",
        x, y, marks, [("kept", "kept"), ("dropped", "dropped")],
    )  # fmt: skip


def course(windows: pl.DataFrame) -> Figure | None:
    """Target loss at the end of every window: trained on everything, and on what was kept."""
    if len(windows) < 2 or "realised" not in windows.columns:
        return None
    ends = (windows["first_step"] + windows["steps"]).to_list()
    offered = windows["target_loss"].to_list()
    kept = [
        (end, loss + change)
        for end, loss, change in zip(ends, offered, windows["realised"], strict=True)
        if change is not None
    ]
    values = offered + [loss for _, loss in kept]
    if not np.isfinite(values).all():
        return None
    log = min(values) > 0 and max(values) / min(values) > 30
    x = Axis(0, max(ends), LEFT, WIDTH - RIGHT, "optimizer step")
    y = _vertical(min(values) if log else min(0.0, *values), max(values), "target loss", log=log)
    marks = [
        *_line("dropped", x, y, list(zip(ends, offered, strict=True)), "with everything"),
        *_line("kept", x, y, kept, "with what was kept"),
    ]
    words = (
        "Each window starts from what the ones before it kept, and is trained twice: on everything "
        "it was offered, to score it, and on what it keeps."
    )
    legend = [("dropped line", "at its end, on everything")]
    if kept:
        legend.append(("kept line", "on what was kept"))
        better = sum(change < 0 for change in windows["realised"].drop_nulls())
        words += f" What was kept did better in {better} of {len(kept)} windows measured."
    else:
        words += " What it came to on what was kept is not measured where windows overlap."
    return Figure("course", "Target loss over the run", words, x, y, marks, legend)


def over_training(windows: pl.DataFrame) -> Figure | None:
    """Mean size of influences, and their expected error, over the run."""
    if len(windows) < 2 or "signal" not in windows.columns:
        return None
    middles = (windows["first_step"] + windows["steps"] / 2).to_list()
    lines = {"kept": windows["signal"].to_list()}
    if "error" in windows.columns:
        lines["dropped"] = windows["error"].to_list()
    values = [v for line in lines.values() for v in line if v is not None and v > 0]
    if not values:
        return None
    ends = windows["first_step"] + windows["steps"]
    x = Axis(0, float(ends.max()), LEFT, WIDTH - RIGHT, "optimizer step")  # type: ignore[arg-type]
    y = _vertical(min(values) / 1.3, max(values) * 1.3, "loss", log=True)
    marks = []
    for look, line in reversed(lines.items()):
        points = [(k, v) for k, v in zip(middles, line, strict=True) if v is not None and v > 0]
        marks += _line(look, x, y, points, "influence" if look == "kept" else "expected error")
    legend = [("kept line", "mean size of an influence")]
    if "dropped" in lines:
        legend.append(("dropped line", "what it is expected to be off by"))
    return Figure(
        "influence", "Influence over training",
        "How much leaving one row out of a step changes the target's loss at the end of its "
        "window, whatever the sign; on a log scale. The further apart the lines, the truer "
        "the influences.",
        x, y, marks, legend,
    )  # fmt: skip


def promises(windows: pl.DataFrame) -> Figure | None:
    """Realised against predicted change of the target loss, a dot per window."""
    if not {"realised", "predicted"} <= set(windows.columns):
        return None
    known = windows.filter(
        pl.col("realised").is_not_null()
        & pl.col("predicted").is_not_null()
        & (pl.col("predicted") != 0)
    )
    if known.is_empty():
        return None
    points = list(zip(known["predicted"], known["realised"], strict=True))
    ends = [v for point in points for v in point]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.05 * (high - low)
    x = Axis(low - margin, high + margin, LEFT, WIDTH - RIGHT, "predicted change of target loss")
    y = _vertical(low - margin, high + margin, "realised")
    marks = [
        _rule("grid", x.at(low), y.at(0), x.at(high), y.at(0)),
        _rule("grid", x.at(0), y.at(low), x.at(0), y.at(high)),
        _rule("guide", x.at(low), y.at(low), x.at(high), y.at(high)),
    ]
    for first, (predicted, realised) in zip(known["first_step"], points, strict=True):
        title = (
            f"window from step {first:,}: predicted {plain(predicted)}, came to {plain(realised)}, "
            f"ratio {realised / predicted:.2f}"
        )
        marks.append(Mark("dot", "kept", (x.at(predicted), y.at(realised)), title))
    ratio = trust_ratio(windows)
    return Figure(
        "promises", "Did predictions come true?",
        "A dot per window: what dropping its rows was predicted to change, and what it did. "
        "Negative is better; on the line predictions come true."
        + ("" if ratio is None else f" {ratio_in_words(ratio)}"),
        x, y, marks, [("kept dot", "a window"), ("guide line", "as predicted")],
    )  # fmt: skip


def trust_ratio(windows: pl.DataFrame) -> float | None:
    """Median over the windows of realised over predicted change; None if none was measured."""
    if not {"realised", "predicted"} <= set(windows.columns):
        return None
    ratios = (windows["realised"] / windows["predicted"]).drop_nulls()
    found = ratios.filter(ratios.is_finite()).median()
    return float(found) if isinstance(found, float) else None


def ratio_in_words(ratio: float) -> str:
    """What realised over predicted change says of the windows."""
    text = f"Realised over predicted, the median of the windows: {ratio:.2f}. "
    if ADDS_UP <= ratio <= 1 / ADDS_UP:
        return text + "That is near 1: influences add up."
    if FAILS <= ratio < ADDS_UP:
        return text + "Rows dropped together did less than one by one, as rows that overlap do."
    return text + (
        "That is far from 1: dropping so much at once does not add up linearly; a shorter "
        "horizon, a lower learning rate or a smaller cut brings it closer."
    )


def retrained(rows: Sequence[Retrained]) -> Figure | None:
    """Test loss of models retrained on each choice: the mean, and one standard deviation."""
    ordered = sorted((row for row in rows if "loss" in row.metrics),
                     key=lambda row: row.metrics["loss"].mean)  # fmt: skip
    if not ordered:
        return None
    losses = [row.metrics["loss"] for row in ordered]
    seeds = len(losses[0].values)
    left = min(150, 16 + 7 * max(cells(row.trained_on) for row in ordered))
    height = TOP + BOTTOM + 26 * len(ordered)
    x = Axis(0, max(own.mean + own.std for own in losses), left, WIDTH - RIGHT, "test loss")
    y = Axis(0, len(ordered), TOP, height - BOTTOM, "")
    marks, names = [], []
    for k, (row, own) in enumerate(zip(ordered, losses, strict=True)):
        look, middle = "kept" if row is rows[0] else "dropped", y.at(k + 0.5)
        spread = f" ± {own.std:.3f}" if seeds > 1 else ""
        title = f"{row.trained_on}: {own.mean:.3f}{spread}"
        low = max(0.0, own.mean - own.std)
        if own.std:
            marks.append(_rule(f"{look} line", x.at(low), middle, x.at(own.mean + own.std), middle))
        marks.append(Mark("dot", look, (x.at(own.mean), middle), title))
        names.append((middle, row.trained_on))
    spread = f" Bars: one standard deviation over {seeds} seeds." if seeds > 1 else ""
    return Figure(
        "retrained", "Retrained from scratch",
        "Loss on the test set of a new model trained on each choice for as many steps; lower is "
        f"better.{spread}",
        x, y, marks, height=height, names=names,
    )  # fmt: skip


def _line(
    look: str, x: Axis, y: Axis, points: Sequence[tuple[float, float]], name: str
) -> list[Mark]:
    places = [(x.at(own), y.at(value)) for own, value in points]
    marks = [Mark("line", look, points=" ".join(f"{a},{b}" for a, b in places))]
    if len(points) <= DENSE:
        marks += [
            Mark("dot", look, place, f"step {own:,.0f}, {name}: {plain(value)}")
            for place, (own, value) in zip(places, points, strict=True)
        ]
    return marks


def _bar(look: str, *numbers: Any) -> Mark:
    *box, title = numbers
    return Mark("bar", look, tuple(round(float(v), 1) for v in box), title)


def _rule(look: str, *numbers: float) -> Mark:
    return Mark("rule", look, numbers)


def _vertical(low: float, high: float, label: str, *, log: bool = False) -> Axis:
    return Axis(low, high, HEIGHT - BOTTOM, TOP, label, log)
