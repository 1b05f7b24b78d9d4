"""The forward step: the only place where training computes a loss or moves a parameter.

Recording, replaying, committing, scoring and leave-one-out all come through
here, so what they must agree on is written once: in the step's record (rows,
weights, learning rates, RNG) or in the rule.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from curate.datasets import Examples
from curate.models import FlatModel, Objective
from curate.models.hidden import Hidden
from curate.models.randomness import NUMPY, PYTHON, Source, seeded, torch_sources
from curate.rules import Rule, State, updated
from curate.runtime.ranks import ALONE, Ranks, shares

Watch = Callable[[slice], AbstractContextManager[Callable[[Tensor], None]]]


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
    held: how many of the rows each rank has, where ranks have rows of their own: the first
        so many are rank 0's, and so on. None where all have all and compute even shares.
    """

    rows: Tensor
    weights: Tensor
    lrs: tuple[float, ...]
    seed: int
    micro_batch: int = 0
    cuts: tuple[int, ...] = ()
    scale: float = 1.0
    held: tuple[int, ...] | None = None

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
        """This step on some of its candidates, by ascending position, shape (k,)."""
        within = positions.tolist()
        cuts = {bisect_left(within, cut) for cut in self.cuts} - {0, len(within)}
        held = None
        if self.held is not None:
            ends = [bisect_left(within, end) for end in accumulate(self.held)]
            held = tuple(end - start for start, end in pairwise([0, *ends]))
        return replace(
            self,
            rows=self.rows[positions],
            weights=self.weights[positions],
            cuts=tuple(sorted(cuts)),
            held=held,
        )

    def reweight(self, weights: Tensor) -> "Step":
        """This step with other weights, shape (n,)."""
        return replace(self, weights=weights)


@dataclass(frozen=True)
class Task:
    """What is being trained: a model, its objective, the candidates; and by which processes.

    Each rank computes its share of the rows of a step, and all get the result of the whole.

    sources: what passes draw random numbers from; found out by the first pass if none are given.
    """

    model: FlatModel
    objective: Objective
    examples: Examples
    ranks: Ranks = ALONE
    sources: Sequence[Source] = ()

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """A block, such as a pass, that draws random numbers as `seed` says.

        It draws from torch, from generators that the model or the objective keeps, and from Python
        and NumPy if the first pass does. All go on after it as if it had not been.
        """
        if self.sources:
            with seeded(seed, self.sources):
                yield
            return
        own = Hidden(self.model.module, self.objective).sources
        known = [*torch_sources(self.model.device), *own]
        with seeded(seed, [*known, PYTHON, NUMPY]):
            fresh = [(source, source.state()) for source in (PYTHON, NUMPY)]
            yield
            known += [source for source, state in fresh if source.moved_from(state)]
        object.__setattr__(self, "sources", known)

    def chunks(self, step: Step) -> list[slice]:
        """The slices of a step's rows that go through this rank's model together, if any.

        Those of `Step.chunks`, cut where the share of this rank begins and ends. The RNG is
        seeded by chunk: dropout falls as in one process where no chunk is cut.
        """
        lengths, rank = self._lengths(step), self.ranks.rank
        start, stop = sum(lengths[:rank]), sum(lengths[: rank + 1])
        cut = (slice(max(c.start, start), min(c.stop, stop)) for c in step.chunks())
        return [chunk for chunk in cut if chunk.start < chunk.stop]

    def join(self, part: Tensor, step: Step) -> Tensor:
        """Values of the rows of this rank's chunks, (..., k), and of all others', (..., n)."""
        return self.ranks.join(part, self._lengths(step))

    def _lengths(self, step: Step) -> Sequence[int]:
        return shares(self.ranks, len(step.rows)) if step.held is None else step.held


class ChunkLosses(NamedTuple):
    """Losses and sizes of one chunk, each of shape (n,), on the model's device."""

    losses: Tensor
    sizes: Tensor


class Gradient(NamedTuple):
    """The gradient of one step, before clipping.

    mean: scale * sum_i w_i grad l_i / sum_i w_i n_i, shape (P,).
    losses, sizes: l_i and n_i of every candidate, shape (n,), float64.
    """

    mean: Tensor
    losses: Tensor
    sizes: Tensor


def chunk_losses(
    task: Task, theta: Tensor, step: Step, chunk: slice, *, exactly: bool = False
) -> ChunkLosses:
    """Per-example losses of one chunk at parameters theta, shape (P,), in training mode.

    exactly: in the precision of the parameters, whatever training computes in.
    """
    with task.model.at(theta, training=True) as module:
        return forward(task, module, step, chunk, exactly=exactly, back=False)


def gradient(
    task: Task, theta: Tensor, step: Step, *, exactly: bool = False, watch: Watch | None = None
) -> Gradient:
    """The step's gradient at theta, shape (P,). A step that weighs nothing has gradient 0.

    Forward and backward as training does them, in the module itself, one chunk held at a time;
    every rank does those of its share, and the sums are joined.

    Args:
        exactly: in the precision of the parameters, whatever training computes in.
        watch: called with each chunk, gives the context of its forward and backward pass; what
            that yields is called with the loss to go back from.
    """
    rows = [theta.new_zeros(2, 0, dtype=torch.float64)]
    with task.model.at(theta, training=True) as module:
        for chunk in task.chunks(step):
            with nullcontext(torch.autograd.backward) if watch is None else watch(chunk) as back:
                losses, sizes = forward(task, module, step, chunk, exactly=exactly)
                if losses.requires_grad:
                    back((step.weights[chunk].to(losses) * losses).sum())
            rows.append(torch.stack([losses.detach(), sizes]).double())
        task.model.note_use()
        mean = task.ranks.sum(task.model.gradient())
    if step.scale != 1:
        mean *= step.scale
    losses, sizes = task.join(torch.cat(rows, dim=1), step)
    return Gradient(mean.div_(nonzero(terms(step, sizes))), losses, sizes)


def terms(step: Step, sizes: Tensor) -> Tensor:
    """N = sum_i w_i n_i, the divisor of a step's mean."""
    return (step.weights.to(sizes) * sizes).sum()


def forward(
    task: Task,
    module: nn.Module,
    step: Step,
    chunk: slice,
    *,
    exactly: bool,
    back: bool = True,
) -> ChunkLosses:
    """The forward pass of a chunk, with the parameters that are in the module.

    back: whether somebody wants to go back through it.
    """
    batch = task.examples.batch(step.rows[chunk], task.model.device)
    with (
        task.seeded(step.seed + chunk.start),
        task.model.computing(exactly=exactly),
        torch.set_grad_enabled(back),
    ):
        losses = task.objective.losses(module, batch)
    return ChunkLosses(losses, task.objective.sizes(batch).to(losses.dtype))


def forward_step(
    task: Task, rule: Rule, state: State, step: Step, grad: Gradient | None = None
) -> tuple[State, Tensor]:
    """One optimizer update; returns the next state and the losses before it, shape (n,).

    `grad` is the step's gradient at `state`, for callers that have it already.
    """
    grad = grad or gradient(task, state.theta, step)
    return updated(rule, grad.mean, state, step.lrs), grad.losses


def nonzero(denominator: Tensor) -> Tensor:
    """A denominator with 1 in place of 0, where the numerator is 0 too."""
    return torch.where(denominator == 0, 1, denominator)
