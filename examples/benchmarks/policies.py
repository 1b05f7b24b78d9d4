"""Every policy at every horizon on recipes/digits.yaml: what is kept, and what it is worth.

For each way of choosing: noise left among what was kept, AUROC of the score for
the planted noise, and test loss and accuracy after retraining from scratch
(mean and spread over the recipe's seeds, the same number of steps for all).

    python examples/benchmarks/policies.py [--noise 0.2] [--set selection.keep.fraction=0.7]

About one minute.
"""

import argparse
from pathlib import Path
from statistics import mean

import torch

from curate.pipeline.evaluate import Row, evaluate, spread
from curate.pipeline.job import prepare
from curate.pipeline.score import choose
from curate.recipe import load_recipe
from curate.runtime.parts import Parts
from curate.runtime.progress import Phases
from curate.selection.ranking import auroc

RECIPE = Path(__file__).parents[2] / "recipes" / "digits.yaml"
HORIZONS = ("1", "4", "17", "34", "68", "full")


def line(name: str, row: Row, quality: float | None) -> str:
    loss, accuracy = row.metrics["loss"], row.metrics["accuracy"]
    shown = "" if quality is None else f"{quality:.3f}"
    return (
        f"{name:32s} {row.kept:5d}  {row.noise_left or 0:6.1%}  {shown:>5s}  "
        f"{mean(loss):.3f} ± {spread(loss):.3f}  {mean(accuracy):.3f} ± {spread(accuracy):.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Policies and horizons on the digits recipe.")
    parser.add_argument("--noise", type=float, default=0.2)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    common = [
        f"data.label_noise.fraction={arguments.noise}",
        "evaluation.against=[]",
        "selection.keep={fraction: 0.7}",
        "selection.rounds=4",
        "selection.epochs=8",
        "selection.judge=false",
        *arguments.overrides,
    ]
    cases: list[tuple[str, list[str]]] = [
        (f"look_ahead, K = {k}, 1 round", [f"selection.horizon={k}", "selection.rounds=1"])
        for k in HORIZONS
    ]
    cases += [
        (f"look_ahead, K = {k}, 4 rounds", [f"selection.horizon={k}", "selection.rounds=4"])
        for k in HORIZONS
    ]
    cases += [
        ("look_ahead, K = 17, 4, by label", ["selection.horizon=17", "selection.group_by=label"])
    ]
    cases += [
        ("loss, K = 1", ["selection.policy=loss", "selection.horizon=1"]),
        ("loss, K = full", ["selection.policy=loss", "selection.horizon=full"]),
        ("knn_shapley", ["selection.policy=knn_shapley"]),
        ("random", ["selection.policy=random"]),
        ("everything", ["selection.policy=random", "selection.keep={fraction: 1.0}"]),
    ]
    print("trained on                        rows   noise  AUROC      test loss  test accuracy")
    for name, overrides in cases:
        recipe = load_recipe(RECIPE, [*common, *overrides])
        job, phases = prepare(recipe, torch.device("cpu")), Phases()
        chosen = choose(job, recipe.selection.policy, phases)
        (row,) = evaluate(job, chosen, phases, None, Parts())
        quality = None
        if job.data.noisy is not None and recipe.selection.policy != "random":
            quality = auroc(-chosen.scores.score, job.data.noisy.numpy())
        print(line(name, row, quality), flush=True)


if __name__ == "__main__":
    main()
