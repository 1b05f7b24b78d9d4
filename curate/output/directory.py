"""What a selection leaves behind: an Arrow dataset, every score, how it came about."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from datasets import Dataset, DatasetDict

from curate.errors import OutputError
from curate.recipe import Recipe, fingerprint, write_recipe
from curate.selection.ledger import Scores
from curate.selection.policies import Array, Choice

MARK = "provenance.json"


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise OutputError if `out` cannot become our directory."""
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{out}: exists already; choose another --out or give --overwrite.")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MARK).is_file()):
        raise OutputError(
            f"{out}: was not written by curate, so --overwrite leaves it alone; move it away."
        )


def existing_parent(out: Path) -> Path:
    """The closest directory above `out` that is there already."""
    return next(parent for parent in out.absolute().parents if parent.is_dir())


@contextmanager
def staged(out: Path, *, overwrite: bool, within: Path | None = None) -> Iterator[Path]:
    """A temporary directory, which becomes `out` when the block ends well.

    Nothing is left behind when it does not. `within`: where it is made, on the file system of
    `out`; beside it if None.
    """
    check_free(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=within or out.parent))
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror}.") from error
    try:
        stage.chmod(0o777 & ~_umask())
        yield stage
        _replace(stage, out)
    except OSError as error:
        raise OutputError(f"{out}: cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@dataclass(frozen=True)
class Selection:
    """What is written: every candidate, which of them are kept, and how that came about.

    table: the candidates, in the order of `scores` by row. recipe: what would repeat the run, if
    a recipe made it. windows: what their scores are worth.
    """

    table: Dataset
    scores: pl.DataFrame
    provenance: dict[str, Any]
    recipe: Recipe | None = None
    windows: Sequence[dict[str, Any]] = ()


def write_selection(stage: Path, selection: Selection) -> None:
    """Fill a staged directory (DESIGN 6) with all but what is made from the rest: its report and
    its card, see `curate.output`."""
    kept = np.flatnonzero(selection.scores.sort("row")["kept"].to_numpy())
    DatasetDict({"train": selection.table.select(kept.tolist())}).save_to_disk(str(stage))
    selection.scores.write_parquet(stage / "scores.parquet")
    if selection.windows:
        windows = pl.DataFrame(selection.windows, infer_schema_length=None)
        windows.write_parquet(stage / "windows.parquet")
    if selection.recipe is not None:
        (stage / "recipe.yaml").write_text(write_recipe(selection.recipe), encoding="utf-8")
    (stage / MARK).write_text(json.dumps(selection.provenance, indent=2) + "\n", encoding="utf-8")


def score_table(
    scores: Scores, choice: Choice, rows: Array, targets: list[str], tokens: Array | None = None
) -> pl.DataFrame:
    """`scores.parquet`: one row per candidate, in the order of the source.

    rows: positions in the source, shape (N,), ascending. tokens: of every candidate, (N,), if
    they are counted.
    """
    influences = scores.influences
    rank = np.empty(len(rows), dtype=np.int64)
    rank[np.argsort(-scores.score, kind="stable")] = np.arange(1, len(rows) + 1)
    columns: dict[str, Any] = {
        "row": rows,
        "influence": pl.Series([None] * len(rows), dtype=pl.Float64)
        if scores.influence is None
        else scores.influence,
        "score": scores.score,
        "rank": rank,
        "kept": choice.kept,
        "reason": choice.reasons,
        "seen": scores.seen,
    }
    if tokens is not None:
        columns["tokens"] = tokens
    if scores.errors is not None:
        columns["error"] = scores.errors
    if influences is not None and len(targets) > 1:
        columns |= {
            f"influence/{name}": part for name, part in zip(targets, influences, strict=True)
        }
    return pl.DataFrame(columns)


def made_with() -> dict[str, Any]:
    """Versions and machine, for the provenance of any result."""
    packages = ("curate", "torch", "datasets", "polars", "numpy", "transformers", "peft")
    return {
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in packages if find_spec(package)},
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
    """The commit of the repository we are run in, where there is one."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _replace(stage: Path, out: Path) -> None:
    if out.is_dir():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=stage.parent))
        out.rename(old / out.name)
        stage.rename(out)
        shutil.rmtree(old)
    else:
        stage.rename(out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
