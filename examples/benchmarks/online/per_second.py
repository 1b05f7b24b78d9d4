"""What is a second worth: to train on everything, or on what is worth training on?

Every method gets the same processor time, choosing included, from the same start and over batches
in the same order; whoever is slower sees fewer of them. Half of a batch is kept, except by `as it
comes`, which keeps four fifths while that pays. `gradient dot` ranks rows by the product of
their gradient with the target's, without the optimizer, at no less cost. Ten times on
the way, off the clock, validation and test rows are measured: the test loss where the validation
loss was lowest, and at the end. The validation rows are the target, so nobody has others.

    python examples/benchmarks/online/per_second.py --data DIR --out runs.jsonl

DIR: see `problems.py`. MNIST with 40 % of the labels wrong, a CNN; TREC with 40 %, a transformer
of two layers. A quarter of an hour per problem on one core; what --out holds is not run again.
"""

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from problems import Data, corrupt, mnist, model, text
from run import Value, baseline, best_half, losses
from scipy.stats import t
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader
from curate.datasets import BatchExamples
from curate.influence import Shortcut, Target
from curate.models import FlatModel, as_objective
from curate.rules import SGD, initial_state
from curate.trajectory import Step, Task

BATCH, LOOKS, TESTED, LR = 64, 10, 2000, 1e-3
NOISE = "uniform:0.4"
METHODS: dict[str, dict[str, Any] | None] = {
    "everything": None,
    "random half": None,
    "gradient dot": None,
    "exact": {"effort": "exact", "keep": 0.5},
    "balanced": {"effort": "balanced", "keep": 0.5},
    "fast": {"effort": "fast", "keep": 0.5},
    "K = 4": {"horizon": 4, "keep": 0.5},
    "as it comes": {},
}


class Transformer(nn.Module):
    """Two layers over the words of a sentence; word 0 is padding."""

    def __init__(self, vocabulary: int, classes: int, width: int = 64) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.embed = nn.Embedding(vocabulary, width)
        self.place = nn.Parameter(0.02 * torch.randn(32, width))
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        there = words > 0
        inward = self.embed(words) + self.place
        states = self.body(inward, src_key_padding_mask=~there) * there.unsqueeze(-1)
        out: Tensor = self.head(states.sum(1) / there.sum(1, keepdim=True).clamp(min=1))
        return out


def by_gradient_dot(target: list[Tensor]) -> Value:
    """Rows are worth how far their gradients point where the target's does."""
    objective, targets = as_objective(losses, "losses"), [Target("t", BatchExamples([target]))]
    shortcut = Shortcut(0.5, 16)

    def value(module: nn.Module, batch: list[Tensor]) -> Tensor:
        flat, rows = FlatModel(module), torch.arange(len(batch[0]))
        step = Step(rows, torch.ones(len(rows)), (1.0,), seed=0)
        task = Task(flat, objective, BatchExamples([batch]))
        state = initial_state(SGD(), flat.read())
        scores, _ = shortcut.scores(task, SGD(), state, step, targets, "fixed")
        return scores.influences[0][0]

    return value


def forever(method: str, batches: Any, module: nn.Module, data: Data) -> Iterator[Any]:
    """What a loop iterates over, epoch after epoch: `batches`, or half of each."""
    value: Value | None = None
    if method == "gradient dot":
        value = by_gradient_dot(list(data.validation))
    elif method == "random half":
        value = baseline("random", data, data.train[1], 1)
    while True:
        yield from batches if value is None else best_half(batches, module, value)


def measured(module: nn.Module, rows: tuple[Tensor, Tensor]) -> float:
    module.eval()
    with torch.no_grad():
        logits = torch.cat([module(part) for part in rows[0].split(1000)])
    module.train()
    return float(nn.functional.cross_entropy(logits, rows[1]))


def run(problem: str, data: Data, seed: int, method: str, seconds: float) -> dict[str, Any]:
    """Train for so long; how it went."""
    noisy = corrupt(data.train[1], NOISE, data.classes, seed)
    torch.manual_seed(seed)
    module = (
        model("cnn", data) if problem == "mnist" else Transformer(data.vocabulary, data.classes)
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR)
    batches = DataLoader(
        TensorDataset(data.train[0], noisy),
        batch_size=BATCH,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed),
    )
    test = data.test[0][:TESTED], data.test[1][:TESTED]
    begin, off, steps, looks = time.process_time(), 0.0, 0, list[tuple[float, float]]()
    options, chosen = METHODS[method], None
    if options is not None:
        target = list(data.validation)
        chosen = LookAheadLoader(batches, module, optimizer, losses, target, **options)
    for batch in forever(method, chosen or batches, module, data):
        optimizer.zero_grad()
        losses(module, batch).mean().backward()
        optimizer.step()
        steps += 1
        spent = time.process_time() - begin - off
        if spent >= (len(looks) + 1) * seconds / LOOKS:
            here = time.process_time()
            looks.append((measured(module, data.validation), measured(module, test)))
            off += time.process_time() - here
        if len(looks) == LOOKS:
            break
    found = {"problem": problem, "seed": seed, "method": method, "steps": steps}
    reports = [] if chosen is None else chosen.reports
    checks = [report.alike for report in reports if report.alike is not None]
    return found | {
        "stopped": min(looks)[1],
        "end": looks[-1][1],
        "alike": mean(checks) if checks else None,
    }


def table(records: list[dict[str, Any]]) -> None:
    """Means over seeds, and of the differences from `everything`, with 95 % intervals."""
    print("| | steps | stopped on validation | less than everything | at the end | decided alike |")
    print("|---|---|---|---|---|---|")
    for problem in sorted({record["problem"] for record in records}):
        plain = {
            r["seed"]: r for r in records if (r["problem"], r["method"]) == (problem, "everything")
        }
        for method in METHODS:
            own = [r for r in records if (r["problem"], r["method"]) == (problem, method)]
            pairs = [plain[r["seed"]]["stopped"] - r["stopped"] for r in own if r["seed"] in plain]
            if len(pairs) < 2:
                continue
            reach = t.ppf(0.975, len(pairs) - 1) * stdev(pairs) / len(pairs) ** 0.5
            checks = [r["alike"] for r in own if r["alike"] is not None]
            alike = f"{mean(checks):.0%}" if checks else ""
            print(
                f"| {problem}, {method} | {mean(r['steps'] for r in own):.0f} | "
                f"{mean(r['stopped'] for r in own):.3f} | {mean(pairs):+.3f} ± {reach:.3f} | "
                f"{mean(r['end'] for r in own):.3f} | {alike} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", nargs="+", default=["mnist", "trec"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="effort=")
    torch.set_num_threads(1)
    records = [json.loads(line) for line in arguments.out.open()] if arguments.out.exists() else []
    done = {(r["problem"], r["seed"], r["method"]) for r in records}
    for problem, seed in product(arguments.problems, range(arguments.seeds)):
        if all((problem, seed, method) in done for method in METHODS):
            continue
        folder = arguments.data
        data = mnist(folder, seed) if problem == "mnist" else text(folder, problem, seed)
        for method in METHODS:
            if (problem, seed, method) in done:
                continue
            records.append(run(problem, data, seed, method, arguments.seconds))
            with arguments.out.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
    table(records)


if __name__ == "__main__":
    main()
