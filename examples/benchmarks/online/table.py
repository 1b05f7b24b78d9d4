"""The tables of the online benchmark, from its runs."""

from collections.abc import Iterable
from typing import Any

import polars as pl


def print_tables(runs: Iterable[dict[str, Any]]) -> None:
    """Test loss and accuracy per method and learning rate, mean over seeds; * = best column."""
    frame = pl.DataFrame(list(runs))
    for (problem, noise), part in frame.group_by("problem", "noise", maintain_order=True):
        lrs = sorted(part["lr"].unique().to_list())
        means = part.group_by("method", "lr", maintain_order=True).agg(
            pl.col("loss", "accuracy", "wrong").mean(), pl.col("loss").std().alias("spread"),
            pl.len().alias("seeds"),
        )  # fmt: skip
        print(f"\n{problem}, {noise} noise: test loss ± spread over seeds, accuracy, wrong labels")
        print("method      " + "".join(f"{'lr ' + format(lr, 'g'):>28s}" for lr in lrs))
        for (method,), rows in means.group_by("method", maintain_order=True):
            cells = []
            for lr in lrs:
                found = rows.filter(pl.col("lr") == lr).to_dicts()
                if not found:
                    cells.append(f"{'':28s}")
                    continue
                cell = found[0]
                best = cell["loss"] == means.filter(pl.col("lr") == lr)["loss"].min()
                cells.append(
                    f"  {cell['loss']:8.3f}{'*' if best else ' '}± {cell['spread'] or 0:.3f} "
                    f"{cell['accuracy']:.3f} {cell['wrong']:4.0%}"
                )
            print(f"{method:12s}" + "".join(cells))
