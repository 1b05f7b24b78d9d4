"""What a selection leaves behind: an Arrow dataset, every score, how it came about."""

import json
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import polars.selectors
import pyarrow.parquet as pq
from datasets import Dataset

from curate.errors import UserError
from curate.output.shards import write_shards
from curate.recipe import Recipe, fingerprint, write_recipe
from curate.runtime.large import released
from curate.runtime.resume import MARK

ROW_GROUP = 2**15
"""Rows of a table that are written, and read again, at a time."""
PACKAGES = ("curate", "torch", "datasets", "polars", "numpy", "transformers", "peft")


@dataclass(frozen=True)
class Selection:
    """What is written: every candidate, which of them are kept, and how that came about.

    table: the candidates, in the order of `scores` by row. recipe: what would repeat the run, if
    a recipe made it. windows: what their scores are worth. also: writes what else
    belongs there.
    """

    table: Dataset
    scores: pl.DataFrame
    provenance: dict[str, Any]
    recipe: Recipe | None = None
    windows: pl.DataFrame = field(default_factory=pl.DataFrame)
    also: Callable[[Path], None] | None = None


def write_selection(stage: Path, selection: Selection) -> None:
    """Fill a staged directory (DESIGN 6) with all but the report and the card."""
    kept = selection.scores.select("row", "kept")
    if not kept["row"].is_sorted():
        kept = kept.sort("row")
    places = np.flatnonzero(kept["kept"].to_numpy())
    if len(places):  # `datasets` cannot read a dataset without rows again
        write_shards(stage, selection.table, places)
    write_table(stage / "scores.parquet", selection.scores)
    if len(selection.windows):
        write_table(stage / "windows.parquet", selection.windows)
    if selection.recipe is not None:
        (stage / "recipe.yaml").write_text(write_recipe(selection.recipe), encoding="utf-8")
    if selection.also is not None:
        selection.also(stage)
    (stage / MARK).write_text(json.dumps(selection.provenance, indent=2) + "\n", encoding="utf-8")


def write_table(path: Path, table: pl.DataFrame) -> None:
    """Write a table by row groups; columns of few words, held as such, become text."""
    words = polars.selectors.by_dtype(pl.Categorical, pl.Enum)
    schema = table.head(0).with_columns(words.cast(pl.String)).to_arrow().schema
    with pq.ParquetWriter(path, schema, compression="zstd") as file:
        for rows in table.iter_slices(ROW_GROUP):
            file.write_table(rows.with_columns(words.cast(pl.String)).to_arrow().cast(schema))
            released()


def made_with() -> dict[str, Any]:
    """Versions and machine, for the provenance of any result."""
    versions = {package: version(package) for package in PACKAGES if find_spec(package)}
    return {
        "versions": {"python": platform.python_version()} | versions,
        "platform": platform.platform(),
        "git_commit": _git_commit(),
    }


def provenance(recipe: Recipe, sources: dict[str, Any]) -> dict[str, Any]:
    """With what a recipe's result was made."""
    return made_with() | {
        "recipe_fingerprint": fingerprint(recipe),
        "sources": sources,
        "seeds": {"data": recipe.data.seed, "training": recipe.training.seed},
    }


def _git_commit() -> str | None:
    """The commit of the repository in the working directory, where there is one."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def refuse_other_data(run: Path, sources: dict[str, Any]) -> None:
    """Raise UserError if a run's data is no longer what it was scored on."""
    try:
        recorded = dict(json.loads((run / MARK).read_text(encoding="utf-8"))["sources"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{run}: its {MARK} cannot be read, so it is not a directory that curate select wrote."
        ) from error
    for name, source in sources.items():
        if recorded.get(name) != source:
            raise UserError(
                f"{run}: {name} has changed since it was scored; select again, or verify the "
                "recipe instead of the run."
            )


def saved_influences(run: Path) -> pl.DataFrame:
    """The columns `row` and `influence` of a run's scores."""
    path = run / "scores.parquet"
    try:
        return pl.read_parquet(path, columns=["row", "influence"])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}.") from error
