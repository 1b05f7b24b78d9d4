"""How many rows are chosen alike when a choice one step ahead is made for less?

Trains on what exact influences choose, half of every batch of 32, and compares with what others
would have chosen from the same state. Each line leaves out more than the one before, until the
target's rows are what is spared: then `n rows, k steps` means that the gradient of so many, drawn
at random, serves so many steps, and `averaged` that it is averaged with those before.

    python examples/benchmarks/shortcuts.py

Digits with 40 % of labels wrong and an MLP from its start, 450 target rows; a GPT of two layers,
350 steps old, on sequences half of which are of the target's language, 16 and 128 target rows.
AdamW. Ten minutes on one core: every row's gradient is taken by itself.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sklearn.datasets import load_digits
from small_gpt import losses, small_gpt
from torch import Tensor, nn
from torch.nn import functional as F

from curate.datasets import BatchExamples, take
from curate.influence import Target, final_adjoint, target_gradients
from curate.influence.through_rule import through_rule
from curate.models import FlatModel, as_objective
from curate.rules import AdamW, State, initial_state

sys.path.insert(0, str(Path(__file__).parent / "gpt"))
from setting import Setting, sequences

BATCH = 32
PARTS = ((0, 10), (10, 20), (20, 50), (50, 100), (100, 200))
RULE = AdamW()


@dataclass
class Problem:
    """A model, what it trains on, at which rate, and what it is to be good at."""

    module: nn.Module
    losses: Callable[[Any, Any], Tensor]
    batches: list[Any]
    target: Any
    lr: float


def digits() -> Problem:
    pixels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pixels), generator=generator)
    x, y = torch.tensor(pixels).float()[order] / 16, torch.tensor(labels)[order]
    target, x, y = [x[:450], y[:450]], x[450:], y[450:].clone()
    wrong = torch.rand(len(y), generator=generator) < 0.4
    y[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    batches: list[Any] = []
    while len(batches) < 200:
        rows = torch.randperm(len(x), generator=generator).split(BATCH)
        batches += [[x[part], y[part]] for part in rows if len(part) == BATCH]

    def losses(model: Any, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    return Problem(module, losses, batches[:200], target, lr=1e-3)


def gpt(targets: int, steps: int = 50, before: int = 350) -> Problem:
    setting = Setting(length=48, vocabulary=512)
    generator = torch.Generator().manual_seed(0)
    count = BATCH * (before + steps)
    rows = torch.cat([sequences(k, count // 2, setting, generator) for k in range(2)])
    batches = list(rows[torch.randperm(count, generator=generator)].split(BATCH))
    target = sequences(0, targets, setting, generator)

    torch.manual_seed(0)
    module = small_gpt(layers=2, width=64, heads=2, vocabulary=512, length=48)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for batch in batches[:before]:
        optimizer.zero_grad()
        losses(module, batch).mean().backward()
        optimizer.step()
    return Problem(module, losses, batches[before:], target, lr=2e-4)


class Rivals:
    """Ways to value the rows of a batch, by what they know."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = FlatModel(problem.module.train())
        self._objective = as_objective(problem.losses, "losses")
        self._generator = torch.Generator().manual_seed(5)
        target = problem.target
        self._rows = len(target) if isinstance(target, Tensor) else len(target[0])
        self._held: dict[str, Tensor] = {}

    def rows(self, theta: Tensor, batch: Any) -> Tensor:
        """Every row's gradient, shape (n, P)."""
        with self.model.at(theta, training=True) as module:
            losses = self.problem.losses(module, batch)
            parameters = list(self.model.members().values())
            found = [torch.autograd.grad(x, parameters, retain_graph=True) for x in losses]
        return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in found])

    def target(self, theta: Tensor, count: int | None = None) -> Tensor:
        """The gradient of the target, or of so many of its rows drawn at random, (1, P)."""
        batch = self.problem.target
        if count is not None and count < self._rows:
            batch = take(batch, torch.randperm(self._rows, generator=self._generator)[:count])
        targets = [Target("target", BatchExamples([batch]))]
        return target_gradients(self.model, self._objective, targets, theta)[1]

    def along(self, grad: Tensor, state: State, target: Tensor) -> Tensor:
        """The adjoint of the step's gradient, shape (P,)."""
        adjoint = final_adjoint(state, target)
        return through_rule(RULE, grad, state, (self.problem.lr,), adjoint)[0][0]

    def values(self, t: int, state: State, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Name and values, the exact ones first."""
        grad, lrs = rows.mean(0), (self.problem.lr,)
        none = torch.zeros_like(grad)
        there = RULE.update(grad, state, lrs).theta
        foreseen = RULE.update(none, state, lrs).theta
        yield "exact", -rows @ self.along(grad, state, self.target(there))
        today = self.target(state.theta)
        yield "target's gradient at today's weights", -rows @ self.along(grad, state, today)
        yield "and no gradient of the step", -rows @ self.along(none, state, today)
        ahead = self.target(foreseen)
        yield "but the target's where the state leads", -rows @ self.along(none, state, ahead)
        for every, count, kept in (
            (4, None, 0.0),
            (8, None, 0.0),
            (16, 256, 0.0),
            (16, 256, 0.5),
            (1, 16, 0.0),
            (1, 16, 0.5),
            (4, 8, 0.5),
        ):
            number = min(count or self._rows, self._rows)
            name = f"{number} rows, {every} steps" + ", averaged" * (kept > 0)
            if t % every == 0:
                new = self.target(foreseen, count)
                self._held[name] = torch.lerp(new, self._held.get(name, new), kept)
            yield name, -rows @ self.along(none, state, self._held[name])
        yield "gradient dot, no optimizer", rows @ today[0]


def compare(problem: Problem) -> dict[str, list[float]]:
    """Name -> by step, the share of the kept half that the exact choice keeps, too."""
    rivals, alike = Rivals(problem), dict[str, list[float]]()
    state = initial_state(RULE, rivals.model.read())
    for t, batch in enumerate(problem.batches):
        rows = rivals.rows(state.theta, batch)
        best: set[int] = set()
        for name, values in rivals.values(t, state, rows):
            half = {*values.topk(len(rows) // 2).indices.tolist()}
            if name == "exact":
                best = half
            else:
                alike.setdefault(name, []).append(len(half & best) / len(half))
        state = RULE.update(rows[sorted(best)].mean(0), state, (problem.lr,))
    return alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    problems: dict[str, Callable[[], Problem]] = {
        "digits, MLP, 450 target rows": digits,
        "GPT, 16 target rows": lambda: gpt(16),
        "GPT, 128 target rows": lambda: gpt(128),
    }
    for title, problem in problems.items():
        found = compare(problem())
        steps = len(next(iter(found.values())))
        parts = [(a, b) for a, b in PARTS if b <= steps]
        print(f"\n| {title}; steps | " + " | ".join(f"{a}-{b - 1}" for a, b in parts) + " |")
        print("|---" * (len(parts) + 1) + "|")
        for name, shares in found.items():
            line = " | ".join(f"{mean(shares[a:b]):.2f}" for a, b in parts)
            print(f"| {name} | {line} |", flush=True)


if __name__ == "__main__":
    main()
