"""Online selection against its baselines, on real data with planted label noise.

Every method is offered the same batches in the same order and takes the same
number of optimizer steps; a method that selects trains on half of each batch.
One line of JSON per run goes to --out as it ends; runs found there are not done
again, so that the grid can be stopped and gone on with.

    python examples/benchmarks/online/run.py --data DIR --out runs.jsonl
    python examples/benchmarks/online/run.py --out runs.jsonl --table

DIR holds the Parquet files that `problems.py` describes. The whole grid takes
some hours on one core.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from problems import Data, corrupt, mnist, model, text
from table import print_best, print_tables
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader
from curate.datasets import take
from curate.selection.policies import shapley_values

Batch = list[Tensor]
Value = Callable[[nn.Module, Batch], Tensor]
BATCH, NEIGHBORS = 100, 10
EPOCHS = {"mnist-mlp": 4, "mnist-cnn": 4, "trec": 8, "subj": 8}
METHODS = [
    "plain",
    "random",
    "loss",
    "knn",
    *(f"K={horizon} R={rounds}" for rounds in (1, 4) for horizon in (1, 2, 4, 8, 16)),
    "K=4 R=4 weights",
]


def losses(module: Any, batch: Batch) -> Tensor:
    """One loss per example."""
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def best_half(batches: Iterable[Batch], module: nn.Module, value: Value) -> Iterator[Batch]:
    """Each batch cut to the half that is worth most: how the baselines select."""
    for batch in batches:
        best = value(module, batch).argsort(descending=True, stable=True)[: len(batch[0]) // 2]
        yield take(batch, best.sort().values)


def lowest_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Drop the highest losses."""
    with torch.no_grad():
        return -losses(module, batch)


def baseline(method: str, data: Data, noisy: Tensor, seed: int) -> Value:
    """What a batch's examples are worth to a baseline."""
    if method == "loss":
        return lowest_loss
    if method == "knn":
        train, validation = (part.numpy().astype(np.float64) for part in data.features)
        worth = torch.from_numpy(
            shapley_values(train, noisy.numpy(), validation, data.validation[1].numpy(), NEIGHBORS)
        )
        return lambda _, batch: worth[batch[2]]
    generator = torch.Generator().manual_seed(seed)
    return lambda _, batch: torch.rand(len(batch[0]), generator=generator)


def selected(
    method: str,
    batches: Any,
    data: Data,
    noisy: Tensor,
    module: nn.Module,
    optimizer: Any,
    seed: int,
) -> Callable[[], Iterable[Any]]:
    """What a method's training loop iterates over, epoch by epoch: batches, or with weights."""
    if method == "plain":
        return lambda: batches
    if method in ("random", "loss", "knn"):
        value = baseline(method, data, noisy, seed)
        return lambda: best_half(batches, module, value)
    horizon, rounds = (part.split("=")[1] for part in method.split()[:2])
    wrapped = LookAheadLoader(
        batches,
        module,
        optimizer,
        losses,
        list(data.validation),
        horizon=int(horizon),
        rounds=int(rounds),
        keep="weights" if method.endswith("weights") else 0.5,
    )
    return lambda: wrapped


def run(problem: str, data: Data, noise: str, lr: float, seed: int, method: str) -> dict[str, Any]:
    """Train once; how it ended."""
    noisy = corrupt(data.train[1], noise, data.classes, seed)
    rows = torch.arange(len(noisy))
    torch.manual_seed(seed)
    module = model(problem.removeprefix("mnist-"), data)
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    batches = DataLoader(
        TensorDataset(data.train[0], noisy, rows),
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    epoch = selected(method, batches, data, noisy, module, optimizer, seed)
    begin, wrong = time.perf_counter(), []
    for _ in range(EPOCHS[problem]):
        module.train()
        for handed in epoch():
            batch, weights = handed if isinstance(handed, tuple) else (handed, torch.ones(()))
            wrong.append((batch[1] != data.train[1][batch[2]]).float().mean().item())
            optimizer.zero_grad()
            (weights * losses(module, batch)).mean().backward()
            optimizer.step()
    seconds = time.perf_counter() - begin
    module.eval()
    with torch.no_grad():
        logits = torch.cat([module(part) for part in data.test[0].split(1000)])
    loss = nn.functional.cross_entropy(logits, data.test[1]).item()
    accuracy = (logits.argmax(1) == data.test[1]).float().mean().item()
    return {
        "problem": problem,
        "noise": noise,
        "lr": lr,
        "seed": seed,
        "method": method,
        "loss": loss,
        "accuracy": accuracy,
        "wrong": float(np.mean(wrong)),
        "seconds": seconds,
    }


def key(record: dict[str, Any]) -> tuple[Any, ...]:
    """What a run is known by."""
    return tuple(record[name] for name in ("problem", "noise", "lr", "seed", "method"))


def main() -> None:
    parser = argparse.ArgumentParser(description="Online selection and its baselines.")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", nargs="+", default=["mnist-mlp", "mnist-cnn", "trec"])
    parser.add_argument("--noises", nargs="+", default=["uniform:0.4", "asymmetric:0.2"])
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 3e-3, 1e-2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known = [json.loads(line) for line in arguments.out.open()] if arguments.out.exists() else []
    done = {key(record) for record in known}
    if not arguments.table:
        for problem, seed in product(arguments.problems, arguments.seeds):
            folder = arguments.data
            data = mnist(folder, seed) if "mnist" in problem else text(folder, problem, seed)
            for noise, lr, method in product(arguments.noises, arguments.lrs, arguments.methods):
                if (problem, noise, lr, seed, method) in done:
                    continue
                record = run(problem, data, noise, lr, seed, method)
                known.append(record)
                with arguments.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(*key(record), f"{record['loss']:.4f} {record['seconds']:.1f} s", flush=True)
    print_tables(known, METHODS)
    print_best(known, METHODS)


if __name__ == "__main__":
    main()
