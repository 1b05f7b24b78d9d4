"""How faithful are influences? The protocol of arXiv:2605.18814 and more networks.

MNIST, an MLP 784-16-16-10 with ReLU, 6,000 images, one epoch in batches of 64, AdamW with betas
(0.9, 0.95) at a constant learning rate: leave each of 200 training images out of its step and
compare what really happens to the losses of 500 test images at the end of training with what
was predicted. The same with GELU, with a small CNN, and with a GPT of 2 layers on characters of
WikiText-2, randomly initialized like the others. A row is a way to predict:

    SGD rule    adjoint of plain SGD's updates along the recorded AdamW run
    linear      of AdamW's own, as `curate` does by default; both are linear in the removal
    exact jump  the step of the removal done again without the example, then linear

A prediction is judged by its Spearman correlation, over the examples left out, with what
happened: to the mean loss of all tests, and to the losses of single tests, averaged over
these. Single tests are as many targets as there are adjoints to carry, which costs most of
the time: `networks.SETTINGS` has all 500 for the MLPs and 20 for the others, `--images` changes
it. The GPT has 600 sequences in batches of 16, 60 left out and 60 tests.

The truth shares the forward step with the predictions and nothing else: from the step that an
example is in the run is trained again without it, to the end, in float64.

    python examples/benchmarks/faithfulness/faithfulness.py --data DIR --out runs.jsonl
    python examples/benchmarks/faithfulness/faithfulness.py --out runs.jsonl --table

DIR holds the Parquet files that `networks.py` describes. One line of JSON per (network,
learning rate, seed) goes to --out as it ends; runs found there are not done again. Needs
scipy (the extra `test`).
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from networks import DTYPE, SETTINGS, problem
from scipy.stats import spearmanr
from torch import Tensor

from curate.datasets import TensorExamples
from curate.influence import Scoring, Target, influence, score_window
from curate.rules import AdamW, Rule, State, as_sgd, initial_state
from curate.trajectory import Step, Task, forward_step, record, replay

RULE = AdamW(betas=(0.9, 0.95))
SGD = Scoring(mistaken_rule=as_sgd(RULE))
JUMP = Scoring(jump_bytes=2**28)
ROWS = ("SGD rule", "linear", "exact jump")
ADJOINTS = 64  # carried at once: more of them are no faster, and fill the memory


def plan(train: int, batch: int, lr: float, seed: int) -> list[Step]:
    """The steps of one epoch."""
    order = torch.randperm(train, generator=torch.Generator().manual_seed(1000 + seed))
    return [
        Step(rows=rows, weights=torch.ones(len(rows)), lrs=(lr,), seed=t)
        for t, rows in enumerate(order.split(batch))
    ]


@torch.no_grad()
def test_losses(task: Task, tests: TensorExamples, theta: Tensor) -> Tensor:
    """The loss of every test at theta, shape (M,)."""
    batch = tests.batch(torch.arange(len(tests)), task.model.device)
    with task.model.at(theta, training=False) as module:
        losses = task.objective.losses(module, batch)
    return losses / task.objective.sizes(batch)


def actual(
    task: Task, rule: Rule, state: State, steps: list[Step], chosen: Tensor, tests: TensorExamples
) -> Tensor:
    """What leaving each of the chosen rows out really changes, shape (len(chosen), M)."""
    before = test_losses(task, tests, replay(task, rule, state, steps).theta)
    changes = before.new_full((len(chosen), len(tests)), torch.nan)
    for k, step in enumerate(steps):
        for place in torch.nonzero(torch.isin(chosen, step.rows)).flatten():
            others = torch.nonzero(step.rows != chosen[place]).flatten()
            final = replay(task, rule, state, [step.keep(others), *steps[k + 1 :]])
            changes[place] = test_losses(task, tests, final.theta) - before
        state, _ = forward_step(task, rule, state, step)
    return changes


def predicted(
    task: Task, rule: Rule, state: State, steps: list[Step], targets: Sequence[Target]
) -> dict[str, Tensor]:
    """Influence of every row on every target, shape (rows, Q), for each of `ROWS`."""
    table = {name: torch.full((len(task.examples), 0), 0.0, dtype=DTYPE) for name in ROWS}
    for first in range(0, len(targets), ADJOINTS):
        own = targets[first : first + ADJOINTS]
        for name, scoring in (("SGD rule", SGD), ("exact jump", JUMP)):
            recording = record(task, rule, state, steps, snapshots=len(steps), gradients=len(steps))
            scores = score_window(task, rule, recording, own, scoring=scoring)
            table[name] = torch.cat([table[name], _by_row(steps, scores.influences)], dim=1)
        linear = [  # of the last pass: the jump changes nothing but the removal's own step
            influence(d, step.weights, n, JUMP.removal)
            for d, step, n in zip(scores.derivatives, steps, scores.sizes, strict=True)
        ]
        table["linear"] = torch.cat([table["linear"], _by_row(steps, linear)], dim=1)
    return table


def _by_row(steps: list[Step], influences: list[Tensor]) -> Tensor:
    """Influences of an epoch's steps, each of shape (Q, n), as (rows, Q)."""
    rows = torch.cat([step.rows for step in steps])
    return torch.cat(influences, dim=1).T[rows.argsort()]


def judge(guess: Tensor, truth: Tensor) -> dict[str, float]:
    """guess: of the mean loss and of single tests, shape (n, 1 + S). truth: shape (n, M)."""
    mean, single = truth.mean(dim=1).numpy(), truth[:, : guess.shape[1] - 1].numpy()
    error = np.abs(guess[:, 0].numpy() - mean) / np.abs(mean)
    ranks = [spearmanr(g, t)[0] for g, t in zip(guess[:, 1:].T.numpy(), single.T, strict=True)]
    return {
        "mean_loss": float(spearmanr(guess[:, 0].numpy(), mean)[0]),
        "single": float(np.mean(ranks)) if ranks else float("nan"),
        "error": float(np.median(error)),
    }


def run(network: str, lr: float, seed: int, folder: Path, images: int | None) -> dict[str, Any]:
    """Train, leave out, predict and compare."""
    setting = SETTINGS[network]
    task, tests = problem(network, folder, seed)
    steps = plan(setting.train, setting.batch, lr, seed)
    start = initial_state(RULE, task.model.read())
    rows = torch.randperm(setting.train, generator=torch.Generator().manual_seed(2000 + seed))
    chosen = rows[: setting.left_out]
    single = setting.single if images is None else min(images, setting.tests)
    targets = [Target("mean", tests)]
    targets += [Target(f"test {k}", tests.take(torch.tensor([k]))) for k in range(single)]
    begin = time.perf_counter()
    truth = actual(task, RULE, start, steps, chosen, tests)
    middle = time.perf_counter()
    guesses = predicted(task, RULE, start, steps, targets)
    return {
        "network": network,
        "lr": lr,
        "seed": seed,
        "images": single,
        "truth_seconds": middle - begin,
        "seconds": time.perf_counter() - begin,
        "rows": {name: judge(guesses[name][chosen], truth) for name in ROWS},
    }


def print_table(runs: Iterable[dict[str, Any]]) -> None:
    """Means over seeds, and the worst seed."""
    frame = pl.DataFrame(
        [
            {name: run[name] for name in ("network", "lr", "seed")} | {"row": row} | numbers
            for run in runs
            for row, numbers in run["rows"].items()
        ]
    )
    print(
        "network   lr     prediction       seeds  Spearman, mean loss: mean    min"
        "   single tests   median relative error"
    )
    order = {name: k for k, name in enumerate((*SETTINGS, *ROWS))}
    groups = frame.group_by("network", "lr", "row").agg(
        pl.len().alias("seeds"),
        pl.col("mean_loss").min().alias("worst"),
        pl.col("mean_loss", "single", "error").mean(),
    )
    for cell in sorted(
        groups.to_dicts(), key=lambda c: (order[c["network"]], -c["lr"], order[c["row"]])
    ):
        print(
            f"{cell['network']:9s} {cell['lr']:<6g} {cell['row']:15s}  {cell['seeds']:5d}"
            f"  {cell['mean_loss']:25.4f} {cell['worst']:6.4f}   {cell['single']:12.4f}"
            f"   {cell['error']:21.4f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Influences against leave-one-out.")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--lrs", nargs="+", type=float, default=[1e-3, 1e-4, 1e-5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--images", type=int, help="single tests that are targets of their own")
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    arguments = parser.parse_args()
    if not (arguments.table or arguments.data):
        parser.error("--data is needed, unless --table only prints")
    torch.set_num_threads(1)  # matrices this small lose by sharing
    known = [json.loads(line) for line in arguments.out.open()] if arguments.out.exists() else []
    done = {(one["network"], one["lr"], one["seed"]) for one in known}
    if not arguments.table:
        for network, seed, lr in product(arguments.networks, arguments.seeds, arguments.lrs):
            if (network, lr, seed) in done:
                continue
            one = run(network, lr, seed, arguments.data, arguments.images)
            known.append(one)
            with arguments.out.open("a") as file:
                file.write(json.dumps(one) + "\n")
            print(network, lr, seed, f"{one['seconds']:.0f} s", flush=True)
    if known:
        print_table(known)


if __name__ == "__main__":
    main()
