"""The forward step: the only place where training computes a loss or moves a parameter.

Recording, replaying, committing, scoring and leave-one-out all come through
here, so what they must agree on is written once: in the step's record (rows,
weights, learning rates, RNG) or in the rule.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from curate.datasets import Examples
from curate.models import FlatModel, Objective, differentiable_attention
from curate.rules import Rule, State


@dataclass(frozen=True)
class Task:
    """What is being trained: a model, its objective, the candidates."""

    model: FlatModel
    objective: Objective
    examples: Examples


@dataclass(frozen=True)
class Step:
    """All that is needed to do one optimizer update again, given the state before it.

    rows: positions of the step's candidates among the examples, shape (n,), int64, on the CPU.
    weights: their weights in the mean, shape (n,); all 1 unless a policy says otherwise.
    lrs: learning rate of every param group.
    seed: starts the RNG of the forward pass, so that dropout falls the same way again.
    micro_batch: examples per forward pass, 0 for all at once; the gradients add up.
    """

    rows: Tensor
    weights: Tensor
    lrs: tuple[float, ...]
    seed: int
    micro_batch: int = 0

    def chunks(self) -> list[slice]:
        """The slices of `rows` that go through the model together."""
        size = self.micro_batch or max(1, len(self.rows))
        return [slice(i, i + size) for i in range(0, len(self.rows), size)]

    def keep(self, positions: Tensor) -> "Step":
        """The same step on some of its candidates, given by position, shape (k,)."""
        return replace(self, rows=self.rows[positions], weights=self.weights[positions])

    def reweight(self, weights: Tensor) -> "Step":
        """The same step with other weights, shape (n,)."""
        return replace(self, weights=weights)


class ChunkLosses(NamedTuple):
    """Losses and sizes of one chunk, each of shape (n,), on the model's device."""

    losses: Tensor
    sizes: Tensor


class Gradient(NamedTuple):
    """The gradient of one step, before clipping.

    mean: sum_i w_i grad l_i / sum_i w_i n_i, shape (P,).
    losses: l_i of every candidate, shape (n,).
    """

    mean: Tensor
    losses: Tensor


def chunk_losses(task: Task, theta: Tensor, step: Step, chunk: slice) -> ChunkLosses:
    """Per-example losses of one chunk at parameters theta, shape (P,), in training mode."""
    batch = task.examples.batch(step.rows[chunk], task.model.device)
    with seeded_rng(step.seed + chunk.start, task.model.device), differentiable_attention():
        losses = task.objective.losses(task.model.bind(theta, training=True), batch)
    return ChunkLosses(losses, task.objective.sizes(batch).to(losses.dtype))


def gradient(task: Task, theta: Tensor, step: Step) -> Gradient:
    """The step's gradient at theta, shape (P,). A step that weighs nothing has gradient 0."""
    theta = theta.detach().requires_grad_()
    weights = step.weights.to(theta)
    total: Tensor | None = None
    denominator, losses = weights.new_zeros(()), []
    for chunk in step.chunks():
        part = chunk_losses(task, theta, step, chunk)
        (found,) = torch.autograd.grad((weights[chunk] * part.losses).sum(), theta)
        total = found if total is None else total.add_(found)
        denominator += (weights[chunk] * part.sizes).sum()
        losses.append(part.losses.detach())
    assert total is not None
    return Gradient(total.div_(nonzero(denominator)), torch.cat(losses))


def forward_step(task: Task, rule: Rule, state: State, step: Step) -> tuple[State, Tensor]:
    """One optimizer update; returns the next state and the losses before it, shape (n,)."""
    grad = gradient(task, state.theta, step)
    with torch.no_grad():
        return rule.update(grad.mean, state, step.lrs), grad.losses


def nonzero(denominator: Tensor) -> Tensor:
    """A denominator to divide by: 1 in place of 0, whose numerator is 0 too."""
    return torch.where(denominator == 0, 1, denominator)


@contextmanager
def seeded_rng(seed: int, device: torch.device) -> Iterator[None]:
    """Run with the RNG started from `seed`, and give the caller's RNG state back after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
