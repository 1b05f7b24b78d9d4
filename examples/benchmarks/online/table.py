"""The tables of the online benchmark, from its runs."""

from collections.abc import Iterable, Sequence
from typing import Any

import polars as pl


def print_tables(runs: Iterable[dict[str, Any]], methods: Sequence[str]) -> None:
    """Test loss, accuracy and wrong labels per method and learning rate, means over seeds.

    * marks the lowest loss of a column.
    """
    frame = pl.DataFrame(list(runs))
    for (problem, noise), part in frame.group_by("problem", "noise", maintain_order=True):
        lrs = sorted(part["lr"].unique().to_list())
        means = part.group_by("method", "lr").agg(
            pl.col("loss", "accuracy", "wrong").mean(),
            pl.col("loss").std().fill_null(0).alias("spread"),
            pl.len().alias("seeds"),
        )
        seeds = sorted(means["seeds"].unique().to_list())
        print(
            f"\n{problem}, {noise} noise, {' or '.join(map(str, seeds))} seeds: "
            "test loss ± spread, accuracy, wrong labels trained on"
        )
        print("method          " + "".join(f"{'lr ' + format(lr, 'g'):>30s}" for lr in lrs))
        for method in methods:
            cells = [_cell(means.filter(pl.col("lr") == lr), method) for lr in lrs]
            if any(cell.strip() for cell in cells):
                print(f"{method:16s}" + "".join(cells))


def print_best(runs: Iterable[dict[str, Any]], methods: Sequence[str]) -> None:
    """Test loss of every method at the learning rate that suits it best, means over seeds."""
    means = (
        pl.DataFrame(list(runs))
        .group_by("problem", "noise", "method", "lr", maintain_order=True)
        .agg(pl.col("loss").mean())
        .group_by("problem", "noise", "method", maintain_order=True)
        .agg(pl.col("loss").min())
        .with_columns(setting=pl.col("problem") + " " + pl.col("noise"))
        .pivot("setting", index="method", values="loss")
    )
    settings = means.columns[1:]
    print("\nTest loss at the best learning rate of each method")
    print(f"{'method':16s}" + "".join(f"{setting:>27s}" for setting in settings))
    for method in methods:
        for row in means.filter(pl.col("method") == method).to_dicts():
            cells = ("" if row[name] is None else format(row[name], ".3f") for name in settings)
            print(f"{method:16s}" + "".join(f"{cell:>27s}" for cell in cells))


def _cell(column: pl.DataFrame, method: str) -> str:
    found = column.filter(pl.col("method") == method).to_dicts()
    if not found:
        return " " * 30
    cell = found[0]
    mark = "*" if cell["loss"] == column["loss"].min() else " "
    return (
        f"  {cell['loss']:9.3f}{mark}± {cell['spread']:.3f}  {cell['accuracy']:.3f} "
        f"{cell['wrong']:4.0%}"
    )
