"""The figures of a run, drawn by matplotlib as pictures of the page.

matplotlib is loaded when the first is drawn: `curate inspect` reads words from here.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.output.saved_run import Retrained, Run
from curate.output.verdict import ADDS_UP, FAILS, share_in_words
from curate.output.words import count, fit, horizon_name, plain, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER, LINE, QUIET, KEPT, DROPPED = "#fdfdfc", "#dededa", "#63635e", "#0a6783", "#a3a29b"
"""Colors of the page, as style.css has them; on a dark page it inverts the figures."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "curate", "svg.fonttype": "none", "font.size": 9, "lines.markersize": 5,
    "figure.facecolor": PAPER, "axes.facecolor": PAPER, "lines.markeredgecolor": PAPER,
    "axes.edgecolor": LINE, "xtick.color": LINE, "ytick.color": LINE, "grid.color": LINE,
    "xtick.labelcolor": QUIET, "ytick.labelcolor": QUIET, "legend.frameon": False,
    "axes.grid": True, "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip
Draw = Callable[["Axes"], None]
BINS = 40
DOTS = 60
"""Points of a line that have dots."""


@dataclass(frozen=True)
class Figure:
    """A figure with its words.

    alt: what it shows, for those who do not see it. caption: how to read it. draw: on axes.
    """

    name: str
    title: str
    alt: str
    caption: str
    draw: Draw
    height: float = 2.7

    @property
    def picture(self) -> str:
        """An SVG as a `data:` address: the same whenever it is drawn."""
        import matplotlib
        from matplotlib.figure import Figure as Canvas

        with matplotlib.rc_context(STYLE):
            canvas = Canvas(figsize=(4.6, self.height), layout="constrained")
            axes = canvas.subplots()
            self.draw(axes)
            if axes.get_legend_handles_labels()[0]:
                canvas.legend(loc="outside lower left", ncols=2)
            svg = io.BytesIO()
            canvas.savefig(svg, format="svg", metadata={"Date": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.getvalue()).decode()}"


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
    kept, dropped = (table.filter(side)["score"].to_numpy() for side in ("kept", ~pl.col("kept")))
    every = table["score"]
    if not every.is_finite().all() or every.n_unique() == 1:
        return None
    lowest, one_cut = float(kept.min()), not len(dropped) or kept.min() >= dropped.max()

    def draw(axes: "Axes") -> None:
        axes.hist([dropped, kept], BINS, stacked=True, rwidth=0.9,
                  color=[DROPPED, KEPT], label=["dropped", "kept"])  # fmt: skip
        if one_cut and len(dropped):
            axes.axvline(lowest, color="black", linestyle="--")
        axes.set(xlabel="score", ylabel="rows")

    cut = (
        f"The cut is at {plain(lowest)}."
        if one_cut
        else "There is no single cut: the budget is shared out among groups."
    )
    return Figure(
        "scores", "Scores, and where the cut is",
        f"Histogram of scores {_span(every)}: {count(len(kept), 'row')} kept, "
        f"{count(len(dropped), 'row')} dropped. {cut}",
        f"A score is in standard deviations of a step; the budget ranks it. {cut}",
        draw,
    )  # fmt: skip


def course(windows: pl.DataFrame) -> Figure | None:
    """Target loss at the end of every window: trained on everything, and on what was kept."""
    if len(windows) < 2 or "realised" not in windows.columns:
        return None
    end = pl.col("first_step") + pl.col("steps")
    offered = windows.select(end, "target_loss")
    kept = windows.select(end, pl.col("target_loss") + pl.col("realised")).drop_nulls()
    losses = [*offered["target_loss"], *kept["target_loss"]]
    if not all(map(math.isfinite, losses)):
        return None
    words = (
        "Each window starts from what the ones before it kept, and is trained twice: on everything "
        "it was offered, to score it, and on what it keeps."
    )
    if len(kept):
        better = windows.filter(pl.col("realised") < 0).height
        words += f" What was kept did better in {better} of {len(kept)} windows measured."
    else:
        words += " What it came to on what was kept is not measured where windows overlap."
    lines = {"on what was kept": kept, "on everything": offered}
    log = 0 < 30 * min(losses) < max(losses)
    return _over_steps("course", "Target loss over the run", words, "target loss", lines, log=log)


def over_training(windows: pl.DataFrame) -> Figure | None:
    """Mean size of influences, and their expected error, over the run."""
    if len(windows) < 2 or "signal" not in windows.columns:
        return None
    middle = pl.col("first_step") + pl.col("steps") / 2
    words = {"signal": "mean size of an influence", "error": "its expected error"}
    return _over_steps(
        "influence", "Influence over training",
        "How much leaving one row out of a step changes the target's loss at the end of its "
        "window, whatever the sign; on a log scale. The further apart the lines, the truer "
        "the influences.",
        "loss",
        {words[name]: windows.select(middle, name).filter(pl.col(name) > 0)
         for name in words if name in windows.columns},
        log=True,
    )  # fmt: skip


def promises(windows: pl.DataFrame) -> Figure | None:
    """Realised against predicted change of the target loss, a dot per window."""
    if not {"realised", "predicted"} <= set(windows.columns):
        return None
    known = windows.drop_nulls(["realised", "predicted"]).filter(pl.col("predicted") != 0)
    if known.is_empty():
        return None

    def draw(axes: "Axes") -> None:
        axes.plot(known["predicted"], known["realised"], "o", color=KEPT, label="a window")
        axes.axline((0, 0), slope=1, color=QUIET, linestyle="--", label="as predicted")
        axes.set(xlabel="predicted change of target loss", ylabel="realised")

    ratio = trust_ratio(windows)
    return Figure(
        "promises", "Did predictions come true?",
        f"{count(len(known), 'window')}: changes predicted {_span(known['predicted'])}, "
        f"and realised {_span(known['realised'])}.",
        "A dot per window: what dropping its rows was predicted to change, and what it did. "
        "Negative is better; on the line predictions come true."
        + ("" if ratio is None else f" {ratio_in_words(ratio)}"),
        draw,
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
    names = [fit(visible(row.trained_on), 20).rstrip() for row in ordered]
    losses = [row.metrics["loss"] for row in ordered]
    seeds = len(losses[0].values)

    def draw(axes: "Axes") -> None:
        for place, (row, own) in enumerate(zip(ordered, losses, strict=True)):
            color = KEPT if row is rows[0] else DROPPED
            axes.errorbar(own.mean, place, xerr=own.std or None, fmt="o", color=color)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set(xlabel="test loss", ylim=(len(names) - 0.5, -0.5))
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)

    each = (f"{name} {own.mean:.3f}" for name, own in zip(names, losses, strict=True))
    spread = f" Bars: one standard deviation over {seeds} seeds." if seeds > 1 else ""
    return Figure(
        "retrained", "Retrained from scratch", f"Test loss by choice: {', '.join(each)}.",
        "Loss on the test set of a new model trained on each choice for as many steps; lower is "
        f"better.{spread}",
        draw, height=0.6 + 0.3 * len(names),
    )  # fmt: skip


def _over_steps(
    name: str, title: str, caption: str, ylabel: str, lines: dict[str, pl.DataFrame], *, log: bool
) -> Figure | None:
    """Two lines from tables of steps and values; None if both are empty."""
    drawn = [(*line, color) for line, color in zip(lines.items(), (KEPT, DROPPED), strict=False)
             if len(line[1])]  # fmt: skip
    if not drawn:
        return None

    def draw(axes: "Axes") -> None:
        for words, table, color in drawn:
            every = -(-len(table) // DOTS)
            axes.plot(*table, "o-", markevery=every, color=color, label=words)
        axes.set(xlabel="optimizer step", ylabel=ylabel)
        axes.set_xlim(left=0)
        if log:
            axes.set_yscale("log", subs=[2, 5])
            axes.yaxis.set_major_formatter(lambda value, _: plain(value))
            axes.yaxis.set_minor_formatter(lambda value, _: plain(value))

    each = (f"{words}: {plain(own[0, 1])} at first, {plain(own[-1, 1])} at last"
            for words, own, _ in drawn)  # fmt: skip
    alt = f"{ylabel.capitalize()} over the run, {'; '.join(each)}."
    return Figure(name, title, alt, caption, draw)


def _span(values: pl.Series) -> str:
    return f"from {plain(min(values))} to {plain(max(values))}"


def plot_tuning(summary: dict[str, Any], table: pl.DataFrame, path: Path) -> None:
    """A heat map over horizon and learning rate, the best pair starred.

    Hatched, behind a line: pairs that the pilots found not to be trusted. In gray: what the
    influences of a pair that was not tried are expected to be off by. Arguments: see
    `Tuned.summary` and its table.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure as Canvas
    from matplotlib.patches import Rectangle

    pairs = table.filter(pl.col("horizon").is_not_null()).sort("horizon", "learning_rate")
    horizons, rates = pairs["horizon"].unique().sort(), pairs["learning_rate"].unique().sort()
    shape = (len(horizons), len(rates))
    lower_is_better = summary["metric"] == "loss"
    values = pairs["value"].cast(float).fill_null(np.nan).to_numpy().reshape(shape)
    trusted = (pairs["outcome"] != "dropped").to_numpy().reshape(shape)
    lines = dict(zip(np.ndindex(shape), pairs.to_dicts(), strict=True))
    figure = Canvas(figsize=(2.2 + 1.05 * shape[1], 1.7 + 0.62 * shape[0]), layout="constrained")
    axes = figure.subplots()
    found = values[np.isfinite(values)]
    image = axes.imshow(
        values,
        cmap="viridis_r" if lower_is_better else "viridis",
        norm=LogNorm() if lower_is_better and found.min() > 0 else None,
        aspect="auto",
        origin="lower",
    )
    for (i, j), line in lines.items():
        if not trusted[i, j]:
            corner = (j - 0.5, i - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fc="0.93", ec="0.6", hatch="///", lw=0))
        elif np.isfinite(values[i, j]):
            shade = float(np.ravel(image.norm(values[i, j]))[0])
            dark = shade > 0.5 if lower_is_better else shade < 0.5
            text = f"{values[i, j]:.3g}" + (" ★" if line["outcome"] == "best" else "")
            _write(axes, i, j, text, color="white" if dark else "black", weight="bold")
        elif line["outcome"] == "failed":
            _write(axes, i, j, "failed", color="0.3")
        else:
            _write(axes, i, j, f"±{share_in_words(line['error'], line['signal'])}", color="0.55")
    _outline(axes, trusted)
    axes.set_xticks(range(shape[1]), [f"{lr:g}" for lr in rates])
    axes.set_yticks(range(shape[0]), [horizon_name(k, summary["steps"]) for k in horizons])
    axes.set(
        xlabel="learning rate", ylabel="horizon K (steps)",
        title=f"{summary['metric']} after training on what each pair keeps",
    )  # fmt: skip
    figure.supxlabel(
        "±: not run, expected error of its influences; hatched: not to be trusted", fontsize=8
    )
    figure.colorbar(image, ax=axes)
    figure.savefig(path, dpi=130)


def _write(axes: "Axes", i: int, j: int, text: str, **style: Any) -> None:
    axes.text(j, i, text, ha="center", va="center", fontsize=9, **style)


def _outline(axes: "Axes", trusted: Any) -> None:
    """A line between what can be trusted and what cannot."""
    rows, columns = trusted.shape
    for i, j in np.ndindex(rows, columns):
        if i + 1 < rows and trusted[i, j] != trusted[i + 1, j]:
            axes.plot([j - 0.5, j + 0.5], [i + 0.5] * 2, color="crimson", lw=2)
        if j + 1 < columns and trusted[i, j] != trusted[i, j + 1]:
            axes.plot([j + 0.5] * 2, [i - 0.5, i + 0.5], color="crimson", lw=2)


def plot_verification(
    table: pl.DataFrame, spearman: float, mistaken: float | None, path: Path
) -> None:
    """Predicted against actual change of the target loss, a point per row left out.

    Bars are the expected error; on the gray line predictions come true. spearman: of the run's
    own scores; mistaken: of those of SGD, in column `influence_sgd`, if they are there.
    """
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(5.2 if mistaken is None else 9.6, 4.8), layout="constrained")
    axes = figure.subplots(1, 1 if mistaken is None else 2, squeeze=False)[0]
    error = table["error"].to_numpy()
    _scatter(axes[0], table, "influence", error, f"this run's scores: Spearman {spearman:.3f}")
    if mistaken is not None:
        title = f"scored as SGD: Spearman {mistaken:.3f}"
        _scatter(axes[1], table, "influence_sgd", None, title)
    figure.savefig(path, dpi=130)


def _scatter(
    axes: "Axes", table: pl.DataFrame, column: str, error: NDArray[Any] | None, title: str
) -> None:
    predicted, actual = (table[name].to_numpy() for name in (column, "actual"))
    if error is not None:
        ends = [min(predicted.min(), actual.min()), max(predicted.max(), actual.max())]
        axes.plot(ends, ends, color="0.6", lw=1, zorder=0)
        if np.isfinite(error).all():
            axes.errorbar(predicted, actual, xerr=error, fmt="none", ecolor="0.7", lw=1, zorder=1)
    axes.scatter(predicted, actual, s=18, zorder=2)
    axes.axhline(0, color="0.85", lw=0.8, zorder=0)
    axes.axvline(0, color="0.85", lw=0.8, zorder=0)
    axes.set(
        title=title,
        xlabel="predicted change of the target loss",
        ylabel="actual change",
    )
