"""What `curate tune` found, in words and in a picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from curate.output.tables import columns, worth_cells
from curate.output.verdict import worth_line
from curate.output.words import mean_and_spread
from curate.tuning import Pair, Tuned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIGNS = {"dropped": "x ", "untried": ". ", "failed": "- "}


def describe_tuning(tuned: Tuned, out: Path) -> str:
    """The closing lines of `curate tune`."""
    plan, metric, cells = tuned.plan, tuned.plan.tune.metric, _cells(tuned)
    lines = [_row("K \\ lr", [f"{lr:g} " for lr in plan.learning_rates])]
    for k in plan.horizons:
        row = [_cell(cells[Pair(k, lr)]) for lr in plan.learning_rates]
        lines.append(_row(_name(k, plan.steps), row))
    everything = (tuned.everything[lr] for lr in plan.learning_rates)
    shown = [SIGNS["failed"] if v is None else f"{v:.3f} " for v in everything]
    lines += [
        _row("all rows", shown),
        f"{metric} on the part of the validation set that no score saw; * best, . not tried, "
        "x not to be trusted",
        "",
        why(tuned),
    ]
    if tuned.test is not None:
        each = {
            name: mean_and_spread([run[metric] for run in runs])
            for name, runs in tuned.test.items()
        }
        lines.append(
            f"test {metric}, retrained: {each['kept']} on what it keeps, "
            f"{each.get('everything', 'diverged')} on everything at the same learning rate"
        )
    if tuned.worth is not None:
        lines += [
            "",
            *columns(worth_cells(tuned.worth)),
            f"{worth_line(tuned.worth)}, everything at its best learning rate, "
            f"{tuned.suits_everything:g}; judged by {tuned.worth['judging']:,} rows that no score "
            "saw, but by which the pair was chosen, so a little in its favour",
        ]
        if tuned.worth["answer"] != "pays":
            lines.append(f"so train on everything, at learning rate {tuned.suits_everything:g}")
    else:
        lines.append("what choosing is worth was not measured: a training for it diverges")
    lines.append(
        f"spent {tuned.passes / plan.grid_passes():.0%} of what runs of all {len(plan.pairs)} "
        "pairs would cost"
        + (
            f", and {tuned.worth['steps'] / plan.steps:.1f} trainings on what it is worth"
            if tuned.worth
            else ""
        )
    )
    lines.append(f"wrote {out}/recipe.yaml (for curate select), tune.parquet, tune.png, tune.json")
    return "\n".join(lines)


def why(tuned: Tuned) -> str:
    """One sentence on why this pair."""
    plan, outcomes = tuned.plan, tuned.table["outcome"].to_list()
    best = tuned.table.filter(pl.col("outcome") == "best").to_dicts()[0]
    runs = sum(outcome in ("best", "beaten", "failed") for outcome in outcomes)
    text = (
        f"best: horizon {_name(tuned.pair.horizon, plan.steps)} with learning rate "
        f"{tuned.pair.learning_rate:g}: {plan.tune.metric} {tuned.value:.4g}, the "
        f"{'lowest' if plan.tune.metric == 'loss' else 'highest'} of {runs} runs; its influences "
        f"are expected to be off by {_relative(best)}"
    )
    if dropped := outcomes.count("dropped"):
        text += f"; {dropped} of {len(plan.pairs)} pairs were not to be trusted"
    return text


def plot_tuning(tuned: Tuned, path: Path) -> None:
    """A heat map over horizon and learning rate, the best pair starred.

    Hatched, behind a line: pairs that the pilots found not to be trusted. In grey: what the
    influences of a pair that was not tried are expected to be off by.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    plan, cells = tuned.plan, _cells(tuned)
    lower_is_better = plan.tune.metric == "loss"
    shape = (len(plan.horizons), len(plan.learning_rates))
    values, trusted = np.full(shape, np.nan), np.ones(shape, dtype=bool)
    at = {
        (i, j): Pair(k, lr)
        for i, k in enumerate(plan.horizons)
        for j, lr in enumerate(plan.learning_rates)
    }
    for place, pair in at.items():
        value = cells[pair]["value"]
        values[place] = np.nan if value is None else value
        trusted[place] = cells[pair]["outcome"] != "dropped"
    figure = Figure(figsize=(2.2 + 1.05 * shape[1], 1.7 + 0.62 * shape[0]), layout="constrained")
    axes = figure.subplots()
    found = values[np.isfinite(values)]
    image = axes.imshow(
        values,
        cmap="viridis_r" if lower_is_better else "viridis",
        norm=LogNorm() if lower_is_better and found.min() > 0 else None,
        aspect="auto",
        origin="lower",
    )
    for (i, j), pair in at.items():
        if not trusted[i, j]:
            corner = (j - 0.5, i - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fc="0.93", ec="0.6", hatch="///", lw=0))
        elif np.isfinite(values[i, j]):
            shade = float(np.ravel(image.norm(values[i, j]))[0])
            dark = shade > 0.5 if lower_is_better else shade < 0.5
            text = f"{values[i, j]:.3g}" + (" ★" if pair == tuned.pair else "")
            _write(axes, i, j, text, color="white" if dark else "black", weight="bold")
        elif cells[pair]["outcome"] == "failed":
            _write(axes, i, j, "failed", color="0.3")
        else:
            _write(axes, i, j, f"±{_relative(cells[pair])}", color="0.55")
    _outline(axes, trusted)
    axes.set_xticks(range(shape[1]), [f"{lr:g}" for lr in plan.learning_rates])
    axes.set_yticks(range(shape[0]), [_name(k, plan.steps) for k in plan.horizons])
    axes.set(
        xlabel="learning rate", ylabel="horizon K (steps)",
        title=f"{plan.tune.metric} after training on what each pair keeps",
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


def _cells(tuned: Tuned) -> dict[Pair, dict[str, Any]]:
    pairs = tuned.table.filter(pl.col("horizon").is_not_null())
    return {Pair(line["horizon"], line["learning_rate"]): line for line in pairs.to_dicts()}


def _cell(line: dict[str, Any]) -> str:
    if line["value"] is None:
        return SIGNS[line["outcome"]]
    return f"{line['value']:.3f}{'*' if line['outcome'] == 'best' else ' '}"


def _row(name: str, cells: list[str]) -> str:
    return name.rjust(10) + "".join(cell.rjust(10) for cell in cells).rstrip()


def _relative(line: dict[str, Any]) -> str:
    """The expected error in units of the mean influence."""
    return f"{line['error'] / line['signal']:.0%}" if line["signal"] else "100%"


def _name(horizon: int, steps: int) -> str:
    return f"full ({steps})" if horizon == steps else str(horizon)
