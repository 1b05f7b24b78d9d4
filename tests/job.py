"""A small dataset, a recipe for it, and the command that runs it."""

import numpy as np
from datasets import Dataset

from curate.cli.main import cli, run

RECIPE = """
data:
  train: rows.parquet
  columns: {features: [x], label: label}
  validation: {fraction: 0.2}
  test: {fraction: 0.2}
  label_noise: {fraction: 0.2}
model: {kind: mlp, hidden: [8]}
training: {epochs: 2, batch_size: 16, optimizer: {kind: adamw, lr: 1e-2}}
selection: {horizon: 4, keep: {fraction: 0.5}, rounds: 4, judge: false}
"""


def rows(count: int = 120) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 4))
    return Dataset.from_dict(
        {
            "x": x.tolist(),
            "label": ["up" if v > 0 else "down" for v in x[:, 0]],
            "note": [f"row {i}" for i in range(count)],
            "group": [i % 3 for i in range(count)],
        }
    )


def sets(*overrides: str) -> list[str]:
    """The options that override so much of a recipe."""
    return [part for override in overrides for part in ("--set", override)]


def curate(*arguments: str) -> int:
    return run(cli, ["select", *arguments])


def verify(*arguments: str) -> int:
    return run(cli, ["verify", *arguments])
