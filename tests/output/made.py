"""Directories as `curate select` leaves them, from made-up scores of any rows."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from datasets import Dataset

from curate.output.composition import composition
from curate.output.directory import Selection, write_selection
from curate.output.page import leave_report
from curate.recipe import Recipe, check_recipe
from curate.runtime.resume import staged

WINDOWS = [
    {"first_step": 0, "steps": 4, "candidates": 9, "kept": 5, "signal": 2e-3, "target_loss": 1.5,
     "predicted": -0.2, "realised": -0.1, "error": 1e-4},
    {"first_step": 4, "steps": 4, "candidates": 9, "kept": 5, "signal": 1e-3, "target_loss": 0.75,
     "predicted": -0.1, "realised": -0.08, "error": 1e-4},
    {"first_step": 8, "steps": 2, "candidates": 9, "kept": 5, "signal": 1e-3, "target_loss": 0.5,
     "predicted": -0.1, "realised": None, "error": 2e-4},
]  # fmt: skip


def recipe(columns: dict[str, Any], **sections: Any) -> Recipe:
    data = {"train": "rows.parquet", "columns": columns, "validation": {"fraction": 0.2}}
    on_text = "features" not in columns
    objective = {"objective": "causal_lm", "model": {"pretrained": "tiny"}} if on_text else {}
    return check_recipe({"data": data | sections.pop("data", {})} | objective | sections)


def made(
    folder: Path, table: Dataset, by: Recipe | None, *, keep: float = 0.5, **provenance: Any
) -> Path:
    """Row 10 + i has the influence and the score of a descending line, the first kept."""
    count = len(table)
    kept = np.arange(count) < round(keep * count)
    scores = pl.DataFrame(
        {
            "row": np.arange(10, 10 + count),
            "influence": np.linspace(2e-3, -1e-3, count),
            "score": np.linspace(1.5, -1.5, count),
            "rank": np.arange(1, count + 1),
            "kept": kept,
            "reason": ["top by score" if k else "below the budget" for k in kept],
            "seen": np.full(count, 2),
            "error": np.full(count, 1e-4),
        }
    )
    facts = {"policy": "look_ahead", "steps": 10, "device": "cpu",
             "composition": composition(table, kept, by)}  # fmt: skip
    with staged(folder, overwrite=True) as stage:
        write_selection(stage, Selection(table, scores, facts | provenance, by, WINDOWS))
        leave_report(stage, table, scores)
    return folder
