"""What does a score cost, in units of plain training?

Times, in turn and several times over, the same steps of: a plain PyTorch loop
(`torch.optim.AdamW`), our forward steps, and recording plus scoring with every
state kept, without the recorded gradients and with them. Prints medians as multiples of the
plain loop.

    python examples/benchmarks/scoring_cost.py [--steps 20] [--rounds 7] [--device cpu]

About two minutes.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from curate.datasets import TensorExamples
from curate.influence import Differences, Target, score_window
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, initial_state
from curate.trajectory import Step, Task, record, replay

CASES: dict[str, tuple[tuple[int, ...], str, dict[str, Any], int]] = {
    "mlp 64-64-10, batch 64": ((64,), "mlp", {"hidden": (64,)}, 64),
    "mlp 784-1024-1024-10, batch 128": ((784,), "mlp", {"hidden": (1024, 1024)}, 128),
    "mlp 784-1024-1024-10, batch 1024": ((784,), "mlp", {"hidden": (1024, 1024)}, 1024),
    "cnn 16-32 on 28x28, batch 64": ((1, 28, 28), "cnn", {"channels": (16, 32)}, 64),
}


def examples(count: int, shape: tuple[int, ...]) -> TensorExamples:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, *shape, generator=generator)
    return TensorExamples(
        features, torch.randint(0, 10, (count,), generator=generator), torch.arange(count)
    )


def runs(
    case: str, count: int, targets_per_pass: int, device: torch.device
) -> dict[str, Callable[[], None]]:
    shape, kind, options, batch = CASES[case]
    module = BUILTIN_MODELS[kind](shape, 10, **options).to(device)
    model = FlatModel(module, device=device)
    data = examples(batch * 4, shape)
    task, rule = Task(model, Classification(), data), AdamW()
    start = initial_state(rule, model.read())
    steps = [
        Step(torch.randperm(batch * 4)[:batch], torch.ones(batch), (1e-3,), seed=t)
        for t in range(count)
    ]
    targets = [Target(str(q), examples(batch, shape)) for q in range(targets_per_pass)]
    differences = Differences()  # of a whole run, as `curate select` and loops have it

    def plain() -> None:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        for step in steps:
            inputs = data.batch(step.rows, device)
            optimizer.zero_grad()
            Classification().losses(module, inputs).mean().backward()
            optimizer.step()

    def ours() -> None:
        replay(task, rule, start, steps)

    def scored(gradients: int) -> None:
        recording = record(task, rule, start, steps, snapshots=count, gradients=gradients)
        score_window(task, rule, recording, targets, differences=differences)

    return {
        "plain": plain,
        "forward": ours,
        "record + score": lambda: scored(0),
        "gradients kept": lambda: scored(count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of one scored round over plain training.")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(
        "times plain training\n"
        "case                              targets  forward  record + score  gradients kept"
    )
    for case in CASES:
        for targets in (1, 4):
            candidates = runs(case, arguments.steps, targets, device)
            seconds: dict[str, list[float]] = {name: [] for name in candidates}
            for turn in range(arguments.rounds + 1):
                for name, go in candidates.items():
                    begin = time.perf_counter()
                    go()
                    if device.type == "cuda":
                        torch.cuda.synchronize()
                    if turn:  # the first turn warms up
                        seconds[name].append(time.perf_counter() - begin)
            forward, scored, kept = (
                median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
                for name in ("forward", "record + score", "gradients kept")
            )
            print(
                f"{case:33s} {targets:7d}  {forward:7.2f}  {scored:14.2f}  {kept:14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
