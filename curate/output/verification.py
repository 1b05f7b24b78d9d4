"""What `curate verify` found, in words and in a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from curate.pipeline.agreement import Agreement
from curate.pipeline.verify import Verified
from curate.selection.policies import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADER = (
    f"{'scored as':14s}  {'Spearman [95 %]':>22s}  {'Pearson [95 %]':>22s}  {'slope':>6s}  "
    f"{'median relative error':>21s}"
)


def describe_verification(found: Verified) -> str:
    """The closing lines of `curate verify`."""
    rows = [("this run", found.agreement), ("SGD (mistaken)", found.mistaken)]
    own = found.agreement
    lines = [HEADER, *(_line(name, row) for name, row in rows if row is not None), ""]
    diverged = len(found.table) - own.examples
    if diverged:
        lines.append(f"{diverged} removals made the training diverge; they are left aside here")
    expected = (
        "not asked for (selection.probing is 0)"
        if found.expected is None
        else f"{found.expected:.2g}"
    )
    lines.append(
        f"error of a score, mean over {own.examples} rows: {own.error:.2g}; expected by the run: "
        f"{expected}; actual changes: {own.signal:.2g}"
    )
    if found.mistaken is not None:
        loss = own.spearman.value - found.mistaken.spearman.value
        lines.append(
            f"taking the optimizer for SGD costs {loss:.3f} of Spearman's correlation, "
            "and the sizes with it"
        )
    lines.append(f"verdict: {own.verdict()}")
    return "\n".join(lines)


def plot_verification(found: Verified, path: Path) -> None:
    """Predicted against actual change of the target loss, a point per row left out.

    Bars are the expected error; on the grey line predictions come true.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 if found.mistaken is None else 9.6, 4.8), layout="constrained")
    axes = figure.subplots(1, 1 if found.mistaken is None else 2, squeeze=False)[0]
    error = found.table["error"].to_numpy()
    _scatter(axes[0], found, "influence", error, found.agreement, "this run's scores")
    if found.mistaken is not None:
        _scatter(axes[1], found, "influence_sgd", None, found.mistaken, "scored as SGD")
    figure.savefig(path, dpi=130)


def _scatter(
    axes: "Axes", found: Verified, column: str, error: Array | None,
    agreement: Agreement, title: str,
) -> None:  # fmt: skip
    predicted, actual = (found.table[name].to_numpy() for name in (column, "actual"))
    if error is not None:
        ends = [min(predicted.min(), actual.min()), max(predicted.max(), actual.max())]
        axes.plot(ends, ends, color="0.6", lw=1, zorder=0)
        if np.isfinite(error).all():
            axes.errorbar(predicted, actual, xerr=error, fmt="none", ecolor="0.7", lw=1, zorder=1)
    axes.scatter(predicted, actual, s=18, zorder=2)
    axes.axhline(0, color="0.85", lw=0.8, zorder=0)
    axes.axvline(0, color="0.85", lw=0.8, zorder=0)
    axes.set(
        title=f"{title}: Spearman {agreement.spearman.value:.3f}",
        xlabel="predicted change of the target loss",
        ylabel="actual change",
    )


def _line(name: str, row: Agreement) -> str:
    return (
        f"{name:14s}  {row.spearman!s:>22s}  {row.pearson!s:>22s}  {row.slope:6.2f}  "
        f"{row.relative_error:21.1%}"
    )
