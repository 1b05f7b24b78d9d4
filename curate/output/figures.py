"""The figures of a run, drawn by matplotlib, which is loaded when the first is drawn."""

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.output.saved_run import SavedRun
from curate.output.scores import SavedScores
from curate.output.verdict import ratio_line, share_in_words, trust_ratio
from curate.output.words import count, fit, horizon_name, plain, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT, DROPPED, QUIET = "#0a6783", "#a3a29b", "#63635e"
"""Colors of the page, as style.css has them."""
STYLE = files("curate.output") / "templates" / "figure.mplstyle"
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
    draw: Callable[["Axes"], None]
    height: float = 2.7

    @property
    def picture(self) -> str:
        """An SVG as a `data:` address: the same whenever it is drawn."""
        import matplotlib
        from matplotlib.figure import Figure as Canvas

        with matplotlib.rc_context(fname=str(STYLE)):
            canvas = Canvas(figsize=(4.6, self.height), layout="constrained")
            axes = canvas.subplots()
            self.draw(axes)
            if axes.get_legend_handles_labels()[0]:
                canvas.legend(loc="outside lower left", ncols=2)
            svg = io.BytesIO()
            canvas.savefig(svg, format="svg", metadata={"Date": None})
        return f"data:image/svg+xml;base64,{base64.b64encode(svg.getvalue()).decode()}"


def figures(run: SavedRun) -> list[Figure]:
    """Every figure that the run has numbers for."""
    drawn = [
        retrained(run.provenance.get("evaluation", [])),
        course(run.windows),
        scores(run.scores),
        over_training(run.windows),
        promises(run.windows),
    ]
    return [figure for figure in drawn if figure is not None]


def scores(of: SavedScores) -> Figure | None:
    """Histogram of the scores, kept upon dropped."""
    if not of.finite or of.lowest == of.highest:
        return None
    lowest, dropped = of.lowest_kept, of.count - of.kept
    one_cut = not dropped or lowest >= of.highest_dropped
    edges = np.linspace(of.lowest, of.highest, BINS + 1)
    counts = np.zeros((2, BINS))
    for part in of.parts("score", "kept"):
        for k in (False, True):
            counts[int(k)] += np.histogram(part.filter(pl.col("kept") == k)["score"], edges)[0]

    def draw(axes: "Axes") -> None:
        below = np.zeros(BINS)
        for own, color, label in zip(counts, (DROPPED, KEPT), ("dropped", "kept"), strict=True):
            axes.stairs(below + own, edges, baseline=below, fill=True, color=color, label=label)
            below = below + own
        if one_cut and dropped:
            axes.axvline(lowest, color="black", linestyle="--")
        axes.set(xlabel="score", ylabel="rows")

    cut = "There is no single cut: the budget is shared out among groups."
    if one_cut:
        cut = f"The cut is at {plain(lowest)}."
    return Figure(
        name="scores",
        title="Scores, and where the cut is",
        alt=f"Histogram of scores from {plain(of.lowest)} to {plain(of.highest)}: "
        f"{count(of.kept, 'row')} kept, {count(dropped, 'row')} dropped. {cut}",
        caption=f"The budget ranks scores. {cut}",
        draw=draw,
    )


def course(windows: pl.DataFrame) -> Figure | None:
    """Target loss at the end of every window: trained on everything, and on what was kept."""
    if len(windows) < 2 or "realized" not in windows.columns:
        return None
    end = pl.col("first_step") + pl.col("steps")
    everything = windows.select(end, "target_loss")
    kept = windows.select(end, pl.col("target_loss") + pl.col("realized")).drop_nulls()
    losses = [*everything["target_loss"], *kept["target_loss"]]
    if not all(map(math.isfinite, losses)):
        return None
    caption, lines = "While the run was scored, nothing was dropped.", {"on everything": everything}
    if (windows["realized"].fill_null(0.0) != 0).any():
        better = windows.filter(pl.col("realized") < 0).height
        caption = (
            "Each window starts from what the ones before it kept, and is trained twice: on "
            "everything it was offered, to score it, and on what it keeps. What was kept did "
            f"better in {better} of {len(kept)} windows measured."
        )
        lines = {"on what was kept": kept} | lines
    return _over_steps(
        name="course",
        title="Target loss over the run",
        caption=caption,
        ylabel="target loss",
        lines=lines,
        log=0 < 30 * min(losses) < max(losses),
    )


def over_training(windows: pl.DataFrame) -> Figure | None:
    """Mean size of influences, and their expected error, over the run."""
    if len(windows) < 2 or "signal" not in windows.columns:
        return None
    middle = pl.col("first_step") + pl.col("steps") / 2
    words = {"signal": "mean size of an influence", "error": "its expected error"}
    return _over_steps(
        name="influence",
        title="Influence over training",
        caption="How much leaving one row out of a step changes the target's loss at the end of "
        "its window, whatever the sign; on a log scale. The further apart the lines, the truer "
        "the influences.",
        ylabel="loss",
        lines={
            label: windows.select(middle, name).filter(pl.col(name) > 0)
            for name, label in words.items()
            if name in windows.columns
        },
        log=True,
    )


def promises(windows: pl.DataFrame) -> Figure | None:
    """Realized against predicted change of the target loss, a dot per window."""
    if not {"realized", "predicted"} <= set(windows.columns):
        return None
    changes = windows.drop_nulls(["realized", "predicted"]).filter(pl.col("predicted") != 0)
    if changes.is_empty():
        return None

    def draw(axes: "Axes") -> None:
        axes.plot(changes["predicted"], changes["realized"], "o", color=KEPT, label="a window")
        axes.axline((0, 0), slope=1, color=QUIET, linestyle="--", label="as predicted")
        axes.set(xlabel="predicted change of target loss", ylabel="realized")

    ratio = trust_ratio(windows)
    return Figure(
        name="promises",
        title="Did predictions come true?",
        alt=f"{count(len(changes), 'window')}: changes predicted {_span(changes['predicted'])}, "
        f"and realized {_span(changes['realized'])}.",
        caption="A dot per window: what dropping its rows was predicted to change, and what it "
        "did. Negative is better; on the line predictions come true."
        + ("" if ratio is None else f" {ratio_line(ratio)}"),
        draw=draw,
    )


def retrained(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Test loss of models retrained on each choice: the mean, and one standard deviation."""
    if not rows:
        return None
    ordered = sorted(rows, key=lambda row: row["loss"]["mean"])
    losses = [row["loss"] for row in ordered]
    names = [fit(visible(row["trained_on"]), 20).rstrip() for row in ordered]
    seeds = len(losses[0]["values"])

    def draw(axes: "Axes") -> None:
        for place, (row, loss) in enumerate(zip(ordered, losses, strict=True)):
            color = KEPT if row is rows[0] else DROPPED
            axes.errorbar(loss["mean"], place, xerr=loss["std"] or None, fmt="o", color=color)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set(xlabel="test loss", ylim=(len(names) - 0.5, -0.5))
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)

    means = (f"{name} {loss['mean']:.3f}" for name, loss in zip(names, losses, strict=True))
    spread = f" Bars: one standard deviation over {seeds} seeds." if seeds > 1 else ""
    return Figure(
        name="retrained",
        title="Retrained from scratch",
        alt=f"Test loss by choice: {', '.join(means)}.",
        caption="Loss on the test set of a new model trained on each choice for as many steps; "
        f"lower is better.{spread}",
        draw=draw,
        height=0.6 + 0.3 * len(names),
    )


def _over_steps(
    *, ylabel: str, lines: dict[str, pl.DataFrame], log: bool, **words: Any
) -> Figure | None:
    """Two lines from tables of steps and values; None if both are empty."""
    colored = zip(lines.items(), (KEPT, DROPPED), strict=False)
    drawn = [(label, table, color) for (label, table), color in colored if len(table)]
    if not drawn:
        return None

    def draw(axes: "Axes") -> None:
        for label, table, color in drawn:
            every = -(-len(table) // DOTS)
            axes.plot(*table, "o-", markevery=every, color=color, label=label)
        axes.set(xlabel="optimizer step", ylabel=ylabel)
        axes.set_xlim(left=0)
        if log:
            axes.set_yscale("log", subs=[2, 5])
            axes.yaxis.set_major_formatter(lambda value, _: plain(value))
            axes.yaxis.set_minor_formatter(lambda value, _: plain(value))

    ends = (
        f"{label}: {plain(table[0, 1])} at first, {plain(table[-1, 1])} at last"
        for label, table, _ in drawn
    )
    alt = f"{ylabel.capitalize()} over the run, {'; '.join(ends)}."
    return Figure(alt=alt, draw=draw, **words)


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
    canvas = Canvas(figsize=(2.2 + 1.05 * shape[1], 1.7 + 0.62 * shape[0]), layout="constrained")
    axes = canvas.subplots()
    positive = lower_is_better and np.nanmin(values) > 0
    image = axes.imshow(
        values,
        cmap="viridis_r" if lower_is_better else "viridis",
        norm=LogNorm() if positive else None,
        aspect="auto",
        origin="lower",
    )
    for (i, j), line in zip(np.ndindex(shape), pairs.to_dicts(), strict=True):
        if line["outcome"] == "dropped":
            corner = (j - 0.5, i - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fc="0.93", ec="0.6", hatch="///", lw=0))
            continue
        text, color, weight = "failed", "0.3", "normal"
        if line["value"] is not None:
            dark = (float(np.ravel(image.norm(values[i, j]))[0]) > 0.5) == lower_is_better
            text = f"{values[i, j]:.3g}" + (" ★" if line["outcome"] == "best" else "")
            color, weight = "white" if dark else "black", "bold"
        elif line["outcome"] != "failed":
            text, color = f"±{share_in_words(line['error'], line['signal'])}", "0.55"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color=color, weight=weight)
    _outline(axes, trusted)
    axes.set_xticks(range(shape[1]), [f"{rate:g}" for rate in rates])
    axes.set_yticks(range(shape[0]), [horizon_name(k, summary["steps"]) for k in horizons])
    axes.set(xlabel="learning rate", ylabel="horizon K (steps)")
    axes.set_title(f"{summary['metric']} after training on what each pair keeps")
    legend = "±: not run, expected error of its influences; hatched: not to be trusted"
    canvas.supxlabel(legend, fontsize=8)
    canvas.colorbar(image, ax=axes)
    canvas.savefig(path, dpi=130)


def _outline(axes: "Axes", trusted: NDArray[Any]) -> None:
    """A line between what can be trusted and what cannot."""
    style: dict[str, Any] = {"color": "crimson", "lw": 2}
    for i, j in np.argwhere(trusted[1:] != trusted[:-1]):
        axes.plot([j - 0.5, j + 0.5], [i + 0.5, i + 0.5], **style)
    for i, j in np.argwhere(trusted[:, 1:] != trusted[:, :-1]):
        axes.plot([j + 0.5, j + 0.5], [i - 0.5, i + 0.5], **style)


def plot_verification(
    table: pl.DataFrame, spearman: float, mistaken: float | None, path: Path
) -> None:
    """Predicted against actual change of the target loss, a point per row left out.

    Bars are the expected error; on the gray line predictions come true. spearman: of the run's
    own scores; mistaken: of those of SGD, in column `influence_sgd`, if they are there.
    """
    from matplotlib.figure import Figure as Canvas

    panels = {"influence": f"this run's scores: Spearman {spearman:.3f}"}
    if mistaken is not None:
        panels["influence_sgd"] = f"scored as SGD: Spearman {mistaken:.3f}"
    canvas = Canvas(figsize=(5.2 if mistaken is None else 9.6, 4.8), layout="constrained")
    actual, error = (table[name].to_numpy() for name in ("actual", "error"))
    subplots = canvas.subplots(1, len(panels), squeeze=False)[0]
    for axes, (column, title) in zip(subplots, panels.items(), strict=True):
        predicted = table[column].to_numpy()
        if column == "influence":
            ends = [min(predicted.min(), actual.min()), max(predicted.max(), actual.max())]
            axes.plot(ends, ends, color="0.6", lw=1, zorder=0)
            if np.isfinite(error).all():
                bars: dict[str, Any] = {"fmt": "none", "ecolor": "0.7", "lw": 1, "zorder": 1}
                axes.errorbar(predicted, actual, xerr=error, **bars)
        axes.scatter(predicted, actual, s=18, zorder=2)
        axes.axhline(0, color="0.85", lw=0.8, zorder=0)
        axes.axvline(0, color="0.85", lw=0.8, zorder=0)
        axes.set(title=title, xlabel="predicted change of the target loss", ylabel="actual change")
    canvas.savefig(path, dpi=130)
