"""The forward step: the only place where training computes a loss or moves a parameter.

Recording, replaying, committing, scoring and leave-one-out all come through
here, so what they must agree on is written once: in the step's record (rows,
weights, learning rates, RNG) or in the rule.
"""

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from curate.datasets import Examples
from curate.models import FlatModel, Objective
from curate.ranks import ALONE, Ranks, own_share
from curate.rules import Rule, State


@dataclass(frozen=True)
class Task:
    """What is being trained: a model, its objective, the candidates; and by which processes.

    Each rank takes its share of the rows of a step, and all know what came of the whole.
    """

    model: FlatModel
    objective: Objective
    examples: Examples
    ranks: Ranks = ALONE

    def chunks(self, step: "Step") -> list[slice]:
        """The slices of a step's rows that go through this rank's model together, if any.

        Those of `Step.chunks`, cut where the share of this rank begins and ends. RNG goes by
        chunk: dropout falls as in one process where no chunk is cut.
        """
        own = own_share(self.ranks, len(step.rows))
        cut = (slice(max(c.start, own.start), min(c.stop, own.stop)) for c in step.chunks())
        return [chunk for chunk in cut if chunk.start < chunk.stop]


@dataclass(frozen=True)
class Step:
    """All that is needed to do one optimizer update again, given the state before it.

    rows: positions of the step's candidates among the examples, shape (n,), int64, on the CPU.
    weights: their weights in the mean, shape (n,); all 1 unless a policy says otherwise.
    lrs: learning rate of every param group.
    seed: starts the RNG of the forward pass, so that dropout falls the same way again.
    micro_batch: examples per forward pass, 0 for all at once; the gradients add up.
    cuts: positions where a forward pass ends whatever its size, because the rows
        before and after were collated apart; ascending, within 1..n-1.
    scale: what the mean gradient is multiplied by before clipping, for a caller's
        loop whose loss is not quite the mean.
    """

    rows: Tensor
    weights: Tensor
    lrs: tuple[float, ...]
    seed: int
    micro_batch: int = 0
    cuts: tuple[int, ...] = ()
    scale: float = 1.0

    def chunks(self) -> list[slice]:
        """The slices of `rows` that go through the model together."""
        edges = [0, *self.cuts, len(self.rows)]
        size = self.micro_batch or max(1, len(self.rows))
        return [
            slice(i, min(i + size, end))
            for start, end in pairwise(edges)
            for i in range(start, end, size)
        ]

    def keep(self, positions: Tensor) -> "Step":
        """The same step on some of its candidates, by ascending position, shape (k,)."""
        within = positions.tolist()
        cuts = {bisect_left(within, cut) for cut in self.cuts} - {0, len(within)}
        return replace(
            self,
            rows=self.rows[positions],
            weights=self.weights[positions],
            cuts=tuple(sorted(cuts)),
        )

    def reweight(self, weights: Tensor) -> "Step":
        """The same step with other weights, shape (n,)."""
        return replace(self, weights=weights)


class ChunkLosses(NamedTuple):
    """Losses and sizes of one chunk, each of shape (n,), on the model's device."""

    losses: Tensor
    sizes: Tensor


class ChunkGradient(NamedTuple):
    """What one chunk adds to a step's gradient.

    total: sum_i w_i grad l_i, shape (P,).
    losses, sizes: l_i and n_i, shape (n,).
    theta, weights: what `total` can be differentiated by, if it was asked for.
    """

    total: Tensor
    losses: Tensor
    sizes: Tensor
    theta: Tensor
    weights: Tensor


class Gradient(NamedTuple):
    """The gradient of one step, before clipping.

    mean: scale * sum_i w_i grad l_i / sum_i w_i n_i, shape (P,).
    losses, sizes: l_i and n_i of every candidate, shape (n,), float64.
    """

    mean: Tensor
    losses: Tensor
    sizes: Tensor


def chunk_losses(task: Task, theta: Tensor, step: Step, chunk: slice) -> ChunkLosses:
    """Per-example losses of one chunk at parameters theta, shape (P,), in training mode."""
    batch = task.examples.batch(step.rows[chunk], task.model.device)
    with seeded_rng(step.seed + chunk.start, task.model.device), task.model.computing():
        losses = task.objective.losses(task.model.bind(theta, training=True), batch)
    return ChunkLosses(losses, task.objective.sizes(batch).to(losses.dtype))


def chunk_gradient(
    task: Task, theta: Tensor, step: Step, chunk: slice, *, differentiable: bool = False
) -> ChunkGradient:
    """The gradient of one chunk at theta, shape (P,); can keep its graph to go through again."""
    theta = theta.detach().requires_grad_()
    weights = step.weights[chunk].to(theta)  # a copy or a view of the step's, so cloned below
    weights = weights.clone().requires_grad_(differentiable)
    part = chunk_losses(task, theta, step, chunk)
    (total,) = torch.autograd.grad(
        (weights * part.losses).sum(), theta, create_graph=differentiable
    )
    return ChunkGradient(total, part.losses.detach(), part.sizes, theta, weights)


def gradient(task: Task, theta: Tensor, step: Step, tape: ChunkGradient | None = None) -> Gradient:
    """The step's gradient at theta, shape (P,). A step that weighs nothing has gradient 0.

    One chunk is held at a time; on every rank those of its share, then the sums are put together.
    `tape` is what this rank adds to it, where somebody has it already.
    """
    total: Tensor | None = None
    rows = [theta.new_zeros(2, 0, dtype=torch.float64)]
    chunks = task.chunks(step)
    for part in (chunk_gradient(task, theta, step, c) for c in chunks) if tape is None else [tape]:
        own = part.total.detach()
        if total is None:
            total = own if tape is None else own.clone()  # a tape is gone through later
        else:
            total += own
        rows.append(torch.stack([part.losses, part.sizes]).double())
    total = task.ranks.sum(torch.zeros_like(theta) if total is None else total)
    if step.scale != 1:
        total *= step.scale
    losses, sizes = task.ranks.join(torch.cat(rows, dim=1), len(step.rows))
    terms = (step.weights.to(sizes) * sizes).sum()
    return Gradient(total.div_(nonzero(terms)), losses, sizes)


def forward_step(
    task: Task, rule: Rule, state: State, step: Step, grad: Gradient | None = None
) -> tuple[State, Tensor]:
    """One optimizer update; returns the next state and the losses before it, shape (n,).

    `grad` is the step's gradient at `state`, where somebody has it already.
    """
    grad = grad or gradient(task, state.theta, step)
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
