"""Do memory and time per row stay flat when a source gets longer, and does `--plan` foretell both?

Parquet files of 16 float32 features and a label are generated, and each is selected from in a
fresh process: a step ahead, one round, one epoch in batches of 256, half of the rows kept, nothing
judged. Prints seconds by phase, microseconds a row, the peak memory of the process, how much of it
is above a process that has only imported what it needs and over that of the smallest, and what
`curate select --plan` said of both.

    python examples/benchmarks/scale.py [--rows 20000 200000 1000000 5000000] [--folder DIR]

About four minutes for a million rows and all below, ten for five. Files that a --folder has already
are used again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FEATURES, CLASSES, AT_A_TIME = 16, 4, 100_000
RECIPE = """\
data:
  train: {path}
  columns: {{features: [{features}], label: label}}
  validation: {{fraction: {held}}}
training: {{epochs: 1, batch_size: 256}}
selection: {{horizon: 1, epochs: 1, keep: {{fraction: 0.5}}, judge: false}}
"""
ROWS = [20_000, 200_000, 1_000_000, 5_000_000]
TARGET = 500
"""Rows that are held out to choose by, whatever the number of rows."""
IMPORTS = "import datasets, polars, torch, curate.pipeline.select, curate.output.figures"


def generate(path: Path, rows: int) -> None:
    """Write a Parquet file of Gaussian clusters, one label in ten wrong, batch by batch."""
    random = np.random.default_rng(0)
    centers = random.normal(size=(CLASSES, FEATURES)).astype(np.float32)
    names = [f"x{k}" for k in range(FEATURES)]
    schema = pa.schema([*((name, pa.float32()) for name in names), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema) as file:
        for first in range(0, rows, AT_A_TIME):
            count = min(AT_A_TIME, rows - first)
            label = random.integers(0, CLASSES, count)
            x = centers[label] + 2 * random.normal(size=(count, FEATURES)).astype(np.float32)
            wrong = random.random(count) < 0.1
            label[wrong] = random.integers(0, CLASSES, int(wrong.sum()))
            file.write_table(pa.table([*x.T, label], schema=schema))


def measured(command: Sequence[str]) -> tuple[str, int]:
    """What a command prints, and the peak resident memory of its process, bytes."""
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen([sys.executable, *command], stdout=printed, env=ENVIRONMENT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        printed.seek(0)
        return printed.read().decode(), usage.ru_maxrss * 1024


ENVIRONMENT = {**os.environ, "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


def select(folder: Path, rows: int) -> dict[str, Any]:
    """Generate, plan and select; returns what `--json` printed, the peak and the plan."""
    path, recipe = folder / f"{rows}.parquet", folder / f"{rows}.yaml"
    if not path.exists():
        generate(path, rows)
    features = ", ".join(f"x{k}" for k in range(FEATURES))
    recipe.write_text(RECIPE.format(path=path, features=features, held=min(0.1, TARGET / rows)))
    command = ["-m", "curate", "select", str(recipe), "--json", "--quiet"]
    out = str(folder / f"out-{rows}")
    planned, _ = measured([*command, "--out", out, "--plan"])
    done, peak = measured([*command, "--out", out, "--overwrite"])
    summary: dict[str, Any] = json.loads(done)
    return summary | {"peak": peak, "plan": json.loads(planned)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory against rows.")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--folder", type=Path, help="where files are made and kept")
    arguments = parser.parse_args()
    _, imported = measured(["-c", IMPORTS])
    print(f"a process that has imported what it needs: {imported / 2**20:,.0f} MiB")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        first = 0
        for rows in sorted(arguments.rows):
            row = select(folder, rows)
            first = first or row["peak"]
            report(rows, row, imported, first)


def report(rows: int, row: dict[str, Any], imported: int, first: int) -> None:
    """Print what was found for so many rows."""
    total, plan = sum(row["seconds"].values()), row["plan"]
    peak, told = row["peak"], plan["memory"]["total"]
    phases = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["seconds"].items())
    print(f"{rows:>10,} rows: {total:.1f} s ({phases}), {1e6 * total / rows:.1f} us a row")
    print(
        f"{'':>16} peak {peak / 2**20:,.0f} MiB, {(peak - imported) / 2**20:,.0f} above the "
        f"imports, {peak / first - 1:+.0%} over the smallest"
    )
    planned = plan["seconds"]["total"]
    print(
        f"{'':>16} planned {told / 2**20:,.0f} MiB ({told / peak - 1:+.0%}), {planned:.1f} s "
        f"({planned / total - 1:+.0%})",
        flush=True,
    )


if __name__ == "__main__":
    main()
