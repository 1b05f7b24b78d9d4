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
