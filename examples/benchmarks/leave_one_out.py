"""Do influences predict what leaving an example out really does?

Digits (pixels scaled to -1..1), an MLP 64-16-16-10 with GELU, AdamW, batches
of 64, in float64. For each learning rate and length: train once, score every
example by going back through the whole run, then train again without each of
100 examples (same batches, same order, the example missing from every batch it
was in) and compare the predicted with the actual change of the validation loss.

    python examples/benchmarks/leave_one_out.py [--examples 100] [--seeds 0 1 2]
                                                [--removal renormalised] [--jump linear]

Each length is run with a constant learning rate and with a linear warm-up over
the first quarter. Without warm-up Adam's first updates are close to sign(g),
whose derivative is 0 while a removal flips signs: no first-order score can see
that, and it costs most of what is missing to 1 at small learning rates;
`--jump exact` does the step of the removal without a derivative.

Needs scikit-learn and scipy (the extra `test`). About three minutes.
"""

import argparse

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from curate.datasets import Scaling, TensorExamples, find_classes, read, read_classes, read_features
from curate.influence import Scoring, Target, score_window, target_gradients
from curate.models import BUILTIN_MODELS, Classification, FlatModel
from curate.rules import AdamW, Schedule, initial_state
from curate.trajectory import Step, Task, record, replay

TRAIN, BATCH = 1200, 64
DTYPE = torch.float64


def digits() -> tuple[TensorExamples, TensorExamples]:
    """1200 examples to train on and the other 597 as the target."""
    data = read("sklearn:digits")
    examples = TensorExamples(
        read_features(data, ["features"], "digits", dtype=DTYPE),
        read_classes(data, "label", "digits", find_classes(data, "label", "digits")),
        torch.arange(len(data)),
        dtype=DTYPE,
        scaling=Scaling(torch.tensor(8.0, dtype=DTYPE), torch.tensor(1 / 8, dtype=DTYPE)),
    )
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return examples.take(order[:TRAIN]), examples.take(order[TRAIN:])


def plan(epochs: int, lr: float, warmup: float) -> list[Step]:
    """The steps of the run; `warmup` is the share of them that warm up."""
    generator = torch.Generator().manual_seed(1)
    batches = [
        b for _ in range(epochs) for b in torch.randperm(TRAIN, generator=generator).split(BATCH)
    ]
    schedule = Schedule("constant", round(warmup * len(batches)))
    return [
        Step(
            rows=rows,
            weights=torch.ones(len(rows)),
            lrs=(lr * schedule.multiplier(t, len(batches)),),
            seed=t,
        )
        for t, rows in enumerate(batches)
    ]


def compare(
    steps: list[Step], seed: int, chosen: Tensor, removal: str, jump: str = "linear"
) -> tuple[float, float]:
    """(Spearman correlation, median relative error) of predicted and actual changes."""
    train, held = digits()
    torch.manual_seed(seed)
    model = FlatModel(BUILTIN_MODELS["mlp"]((64,), 10, hidden=(16, 16)), dtype=DTYPE)
    task, rule = Task(model, Classification(), train), AdamW()
    start, targets = initial_state(rule, model.read()), [Target("validation", held)]
    recording = record(task, rule, start, steps, snapshots=len(steps), gradients=len(steps))
    scored = score_window(
        task,
        rule,
        recording,
        targets,
        scoring=Scoring(removal=removal, jump_bytes=2**28 if jump == "exact" else None),
    )
    predicted = torch.zeros(TRAIN, dtype=DTYPE)
    for step, influences in zip(steps, scored.influences, strict=True):
        predicted[step.rows] += influences[0]

    actual = []
    for row in chosen.tolist():
        without = [step.keep(torch.nonzero(step.rows != row).squeeze(1)) for step in steps]
        final = replay(task, rule, start, without)
        loss, _ = target_gradients(model, task.objective, targets, final.theta)
        actual.append(float(loss[0] - scored.target_losses[0]))
    truth, guess = np.array(actual), predicted[chosen].numpy()
    error = np.median(np.abs(guess - truth) / np.abs(truth))
    return float(spearmanr(guess, truth)[0]), float(error)


def main() -> None:
    parser = argparse.ArgumentParser(description="Influences against leave-one-out, on digits.")
    parser.add_argument("--examples", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--removal", choices=["renormalised", "fixed"], default="renormalised")
    parser.add_argument("--jump", choices=["linear", "exact"], default="linear")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # matrices this small lose by sharing
    chosen = torch.randperm(TRAIN, generator=torch.Generator().manual_seed(2))
    chosen = chosen[: arguments.examples]
    print(
        f"{len(chosen)} examples, seeds {arguments.seeds}, {arguments.removal} removal, "
        f"{arguments.jump} jump"
    )
    print("epochs  warm-up  lr      Spearman: mean    min  median relative error")
    for warmup in (0.25, 0.0):
        for epochs in (4, 1):
            for lr in (1e-3, 3e-3, 1e-2):
                steps = plan(epochs, lr, warmup)
                found = [
                    compare(steps, s, chosen, arguments.removal, arguments.jump)
                    for s in arguments.seeds
                ]
                ranks, errors = zip(*found, strict=True)
                print(
                    f"{epochs:6d}  {warmup:7g}  {lr:<6g}  {np.mean(ranks):14.3f} {min(ranks):6.3f}"
                    f"  {np.mean(errors):21.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
