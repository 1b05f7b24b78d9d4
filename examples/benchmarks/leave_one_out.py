"""Do influences predict what leaving an example out really does?

Digits, an MLP 64-16-16-10 with GELU, AdamW, batches of 64. For each learning
rate and length: train once, score every example by going back through the
whole run, then train again without each of 100 examples (same batches, same
order, one example missing from each batch it was in) and compare the predicted
with the actual change of the validation loss.

    python examples/benchmarks/leave_one_out.py [--examples 100] [--removal renormalised]

Needs the extras `demo` and `test` (scikit-learn, scipy). About two minutes.
"""

import argparse

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from curate.datasets import Scaling, TensorExamples, read, read_classes, read_features
from curate.datasets.labels import Classes
from curate.influence import Target, score_window, target_gradients
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, initial_state
from curate.trajectory import Step, Task, record, replay

TRAIN, BATCH = 1200, 64


def digits() -> tuple[TensorExamples, TensorExamples]:
    data = read("sklearn:digits")
    features = read_features(data, ["features"], "digits", dtype=torch.float64)
    labels = read_classes(data, "label", "digits", Classes(10))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    examples = TensorExamples(features, labels, torch.arange(len(data)), dtype=torch.float64)
    scaling = Scaling.standardising(features[order[:TRAIN]], torch.float64)
    train, held = order[:TRAIN], order[TRAIN:]
    return (
        examples.take(train).standardised_by(scaling),
        examples.take(held).standardised_by(scaling),
    )


def plan(epochs: int, lr: float) -> list[Step]:
    generator = torch.Generator().manual_seed(1)
    batches = [
        b for _ in range(epochs) for b in torch.randperm(TRAIN, generator=generator).split(BATCH)
    ]
    return [
        Step(rows=rows, weights=torch.ones(len(rows)), lrs=(lr,), seed=t)
        for t, rows in enumerate(batches)
    ]


def compare(epochs: int, lr: float, chosen: Tensor, removal: str) -> tuple[float, float]:
    """(Spearman correlation, median relative error) of predicted and actual changes."""
    torch.manual_seed(0)
    train, held = digits()
    model = FlatModel(BUILTIN_MODELS["mlp"]((64,), 10, hidden=(16, 16)), dtype=torch.float64)
    task, rule = Task(model, Classification(), train), AdamW()
    start, steps = initial_state(rule, model.read()), plan(epochs, lr)
    targets = [Target("validation", held)]
    recording = record(task, rule, start, steps, snapshots=len(steps))
    scored = score_window(task, rule, recording, targets, removal=removal)
    predicted = torch.zeros(TRAIN, dtype=torch.float64)
    for step, influences in zip(steps, scored.influences, strict=True):
        predicted[step.rows] += influences[0]

    actual = []
    for row in chosen.tolist():
        without = [step.keep(torch.nonzero(step.rows != row).squeeze(1)) for step in steps]
        final = replay(task, rule, start, without)
        loss, _ = target_gradients(model, task.objective, targets, final.theta)
        actual.append(float(loss[0] - scored.target_losses[0]))
    truth, guess = np.array(actual), predicted[chosen].numpy()
    return float(spearmanr(guess, truth)[0]), float(
        np.median(np.abs(guess - truth) / np.abs(truth))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--removal", choices=["renormalised", "fixed"], default="renormalised")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # matrices this small lose by sharing
    chosen = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(2))
    print("epochs  lr     Spearman  median relative error")
    for epochs in (4, 1):
        for lr in (1e-3, 3e-3, 1e-2):
            rank, error = compare(epochs, lr, chosen[: arguments.examples], arguments.removal)
            print(f"{epochs:6d}  {lr:<5g}  {rank:8.3f}  {error:21.3f}", flush=True)


if __name__ == "__main__":
    main()
