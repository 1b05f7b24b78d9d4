"""recipes/digits.yaml again on other splits, other wrong labels and other initial weights.

One line per split: test loss after retraining, mean over the recipe's seeds.

    python examples/benchmarks/splits.py [--splits 5] [--set selection.horizon=34]

About half a minute.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch

from curate.pipeline.evaluate import evaluate
from curate.pipeline.job import prepare
from curate.pipeline.score import choose
from curate.recipe import load_recipe
from curate.runtime.parts import Parts
from curate.runtime.progress import Phases

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
FIXED = [  # a budget that is named, over the whole run, with rows dropped on the way
    "selection.keep={fraction: 0.7}",
    "selection.horizon=17",
    "selection.rounds=4",
    "selection.epochs=8",
    "selection.judge=false",
]
SEEDS = ("data.seed", "data.label_noise.seed", "training.seed")


def main() -> None:
    parser = argparse.ArgumentParser(description="The digits recipe on several splits.")
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    losses: dict[str, list[float]] = {}
    for split in range(arguments.splits):
        overrides = [*FIXED, *arguments.overrides, *(f"{key}={split}" for key in SEEDS)]
        recipe = load_recipe(RECIPE, overrides)
        job, phases = prepare(recipe, torch.device("cpu")), Phases()
        chosen = choose(job, recipe.selection.policy, phases)
        for row in evaluate(job, chosen, phases, None, Parts()):
            losses.setdefault(row.name, []).append(mean(row.metrics["loss"]))
    print("trained on    " + "".join(f"  split {k}" for k in range(arguments.splits)) + "     mean")
    for name, values in sorted(losses.items(), key=lambda item: mean(item[1])):
        cells = "".join(f"  {value:7.3f}" for value in (*values, mean(values)))
        print(f"{name:14s}{cells}")


if __name__ == "__main__":
    main()
