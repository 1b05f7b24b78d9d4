"""What scores cost, and what it costs to know how wrong they are, in units of plain training.

Times the same steps, cut into windows of K: trained; recorded and scored with linear
influences, in one round and in four, and with the exact jump; and each of these with the
error proxy at its default share. Every state and gradient is kept. CPU time, in turn; medians of
the ratios within one turn. Passes are those of the cost model, in gradients of one step's
batch: per step one to record and 1.3 to score, and per window a gradient of the targets.

The exact jump is O(n P) for n candidates and P parameters, since every candidate has a
gradient and two updates of its own, where the rest is bound by matrix products
over the whole batch: little on a small model, a lot on a large one.

    python examples/benchmarks/score_cost.py [--steps 32] [--repeats 5]

About three minutes.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from scoring_cost import examples

from curate.influence import Scoring, Target
from curate.influence.cost import BACK
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, initial_state
from curate.selection.budget import Budget
from curate.selection.driver import Selector
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead
from curate.trajectory import Step, Task, replay

INPUTS, TARGETS, BATCH = 64, 256, 64
WAYS = {
    "linear": (Scoring(), 1, 0.0),
    "jump": (Scoring(jump_bytes=2**28), 1, 0.0),
    "rounds": (Scoring(), 4, 0.0),
    "proxy": (Scoring(), 1, 0.2),
    "jump proxy": (Scoring(jump_bytes=2**28), 1, 0.2),
    "rounds proxy": (Scoring(), 4, 0.2),
}
PAIRS = {"linear": "proxy", "jump": "jump proxy", "rounds": "rounds proxy"}


def ways(task: Task, steps: list[Step], horizon: int) -> dict[str, Callable[[], object]]:
    """Name -> a function that goes through the steps in that way."""
    targets = [Target("target", examples(TARGETS, (INPUTS,)))]
    state = initial_state(AdamW(), task.model.read())

    def scored(scoring: Scoring, rounds: int, share: float) -> Callable[[], object]:
        judge = Judge(
            task,
            AdamW(),
            LookAhead(rounds),
            targets,
            scoring=scoring,
            snapshots=horizon,
            gradients=horizon,
        )
        selector = Selector(judge, Budget(fraction=1.0), horizon, probing=share)
        return lambda: selector.run(state, steps)

    return {"plain": lambda: replay(task, AdamW(), state, steps)} | {
        name: scored(*way) for name, way in WAYS.items()
    }


def seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description="Cost of scores and of their error.")
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"batches of {BATCH}, {TARGETS} target rows; x plain training; proxy: what it adds")
    print(
        "hidden       parameters   K  passes  linear   jump  4 rounds  "
        "proxy: of linear  of jump  of 4 rounds"
    )
    for hidden in ((16, 16), (64,), (256, 256)):
        for horizon in (1, 8, arguments.steps):
            module = BUILTIN_MODELS["mlp"]((INPUTS,), 10, hidden=hidden)
            model, data = FlatModel(module), examples(BATCH * 4, (INPUTS,))
            task = Task(model, Classification(), data)
            steps = [
                Step(torch.randperm(BATCH * 4)[:BATCH], torch.ones(BATCH), (1e-3,), seed=t)
                for t in range(arguments.steps)
            ]
            runs = ways(task, steps, horizon)
            for run in runs.values():
                run()
            turns = [
                {name: seconds(run) for name, run in runs.items()} for _ in range(arguments.repeats)
            ]
            ratio = {n: median(turn[n] / turn["plain"] for turn in turns) for n in WAYS}
            extra = {
                n: median(turn[proxy] / turn[n] - 1 for turn in turns) for n, proxy in PAIRS.items()
            }
            passes = 1 + BACK + TARGETS / BATCH / horizon
            print(
                f"{hidden!s:11s}  {model.size:10d}  {horizon:2d}  {passes:6.1f}  "
                + "  ".join(f"{ratio[n]:5.1f}" for n in ("linear", "jump"))
                + f"  {ratio['rounds']:8.1f}  {extra['linear']:16.0%}  {extra['jump']:7.0%}"
                f"  {extra['rounds']:11.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
