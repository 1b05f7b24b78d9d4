"""What does the exact jump cost, in units of scoring without it?

O(n P) for n candidates and P parameters, since every candidate has a gradient
and an update of its own, where the rest is bound by matrix products over the
whole batch: little on a small model, a lot on a large one. Times the same steps
recorded and scored with the linear and with the exact jump, in turn.

    python examples/benchmarks/jump_cost.py [--steps 4] [--repeats 5]

About a minute.
"""

import argparse
import time
from statistics import median

import torch
from scoring_cost import examples
from torch import Tensor

from curate.influence import Scoring, Target, score_window
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, initial_state
from curate.trajectory import Step, Task, record

INPUTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of the exact jump over linear scoring.")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("hidden  parameters  batch  exact jump, x linear")
    for hidden in ((16, 16), (64,), (256,), (256, 256)):
        for batch in (16, 64):
            module = BUILTIN_MODELS["mlp"]((INPUTS,), 10, hidden=hidden)
            model, data = FlatModel(module), examples(batch * 4, (INPUTS,))
            task, rule = Task(model, Classification(), data), AdamW()
            steps = [
                Step(torch.randperm(batch * 4)[:batch], torch.ones(batch), (1e-3,), seed=t)
                for t in range(arguments.steps)
            ]
            targets = [Target("target", examples(batch, (INPUTS,)))]
            start = initial_state(rule, model.read())

            def seconds(
                jump_bytes: int | None, task: Task = task, steps: list[Step] = steps,
                targets: list[Target] = targets, theta: Tensor = start.theta,
            ) -> float:  # fmt: skip
                begin = time.perf_counter()
                state = initial_state(AdamW(), theta)
                made = record(task, AdamW(), state, steps, snapshots=len(steps), tape_bytes=2**30)
                score_window(task, AdamW(), made, targets, scoring=Scoring(jump_bytes=jump_bytes))
                return time.perf_counter() - begin

            seconds(2**28)
            ratios = [seconds(2**28) / seconds(None) for _ in range(arguments.repeats)]
            print(
                f"{hidden!s:10s}  {model.size:6d}  {batch:5d}  {median(ratios):20.1f}", flush=True
            )


if __name__ == "__main__":
    main()
