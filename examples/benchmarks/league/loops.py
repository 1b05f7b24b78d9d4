"""Choosing in a training loop, on the league's data: plain, `keep="auto"` as it comes, and a share.

    python examples/benchmarks/league/loops.py --data DIR [--splits 3] [SETTING ...]

DIR as for `league.py`. Every loop is plain PyTorch with AdamW for the setting's epochs; printed are
test losses at its end (mean over splits, and each), the share of rows trained on, and seconds.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from fields import SETTINGS, Setting
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader
from curate.models import BUILTIN_MODELS

WAYS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "auto, K = 1": {"horizon": 1},
    "auto, K = 4": {"horizon": 4},
    "auto, K = 16": {"horizon": 16},
    "80 %, K = 4": {"horizon": 4, "keep": 0.8},
}


def arrays(setting: Setting) -> dict[str, tuple[Tensor, Tensor]]:
    """Features and labels of every part, standardized where that is asked for."""
    found = {part: np.array(table["x"].to_list()) for part, table in setting.tables.items()}
    if setting.recipe["data"]["standardize"]:
        middle, spread = found["train"].mean(axis=0), found["train"].std(axis=0)
        found = {part: (x - middle) / np.where(spread > 0, spread, 1) for part, x in found.items()}
    return {
        part: (
            torch.tensor(x, dtype=torch.float32),
            torch.tensor(setting.tables[part]["label"].to_numpy().astype(np.int64)),
        )
        for part, x in found.items()
    }


def losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def loop(setting: Setting, options: dict[str, Any] | None, seed: int) -> tuple[float, float, float]:
    """Test loss, share of rows trained on, and seconds."""
    data, training = arrays(setting), setting.recipe["training"]
    classes, hidden = (
        setting.recipe["data"]["columns"]["classes"],
        setting.recipe["model"]["hidden"],
    )
    torch.manual_seed(seed)
    shape = tuple(data["train"][0].shape[1:])
    model = BUILTIN_MODELS["mlp"](shape, classes, hidden=tuple(hidden), activation="gelu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=training["optimizer"]["lr"])
    batches: Any = DataLoader(
        TensorDataset(*data["train"]),
        batch_size=training["batch_size"],
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    if options is not None:
        batches = LookAheadLoader(batches, model, optimizer, losses, data["validation"], **options)
    begin, trained = time.perf_counter(), 0
    for _ in range(training["epochs"]):
        for batch in batches:
            optimizer.zero_grad()
            losses(model, batch).mean().backward()
            optimizer.step()
            trained += len(batch[1])
    seconds = time.perf_counter() - begin
    with torch.no_grad():
        loss = float(losses(model, data["test"]).mean())
    return loss, trained / training["epochs"] / len(data["train"][1]), seconds


def main() -> int:
    parser = argparse.ArgumentParser(description="Choosing in a loop.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=3)
    known = "; ".join(SETTINGS).replace("%", "%%")
    parser.add_argument("names", nargs="*", help=f"of {known}; all if none")
    asked = parser.parse_args()
    if unknown := [name for name in asked.names if name not in SETTINGS]:
        print(f"no setting is called {unknown[0]!r}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    for name in asked.names or SETTINGS:
        print(f"{name}", flush=True)
        for way, options in WAYS.items():
            found = [
                loop(SETTINGS[name](asked.data, split), options, split)
                for split in range(asked.splits)
            ]
            loss, share, seconds = zip(*found, strict=True)
            each = " ".join(f"{own:.3f}" for own in loss)
            print(
                f"  {way:13s} {mean(loss):.3f} ({each})  trained on {mean(share):.0%}  "
                f"{mean(seconds):.1f} s",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
