"""Targets: named validation sets, their losses, and the gradients that start an adjoint."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from curate.datasets import Examples
from curate.models import Batch, FlatModel, Objective, losses_and_metrics
from curate.runtime.ranks import ALONE, Ranks, own_share
from curate.trajectory import counting

CHUNK = 1024
"""Examples at a time: the same for losses that are compared, so that they round alike."""


@dataclass(frozen=True)
class Groups:
    """The groups that rows of a target are in, and how their mean losses make one number.

    of: each row's, shape (n,), int64. terms: in the losses of a group, shape (G,), float64. worst:
    h > 0 for log(mean_g exp(h L_g)) / h, between their mean and the worst of them; 0 for the mean.
    """

    of: Tensor
    terms: Tensor
    worst: float = 0.0

    def value(self, sums: Tensor) -> float:
        """The number, from the summed losses of every group, shape (G,)."""
        means = sums / self.terms
        if not self.worst:
            return float(means.mean())
        scaled = torch.logsumexp(self.worst * means, dim=0) - math.log(len(means))
        return float(scaled / self.worst)

    def weights(self, sums: Tensor) -> Tensor:
        """Derivative of the value by the sums, shape (G,)."""
        if not self.worst:
            return 1 / (len(self.terms) * self.terms)
        return torch.softmax(self.worst * sums / self.terms, dim=0) / self.terms


@dataclass(frozen=True)
class Target:
    """A named set of examples whose mean loss is what influences are about.

    weight: above or equal to 0, in the mean over several targets, see `over_targets`.
    objective: what is to be low on them; that of training if None. groups: of its rows, whose mean
    losses are averaged; None where all rows are alike.
    """

    name: str
    examples: Examples
    weight: float = 1.0
    objective: Objective | None = None
    groups: Groups | None = None

    def about(self, training: Objective) -> Objective:
        """Its objective, or that of training."""
        return self.objective or training

    def shares(self, losses: Tensor, sizes: Tensor) -> Tensor:
        """What each row counts, (n,), sum 1: the value moves by the shares times losses per term.

        losses, sizes: of all rows, shape (n,), float64.
        """
        if self.groups is None:
            return sizes / sizes.sum()
        sums = torch.zeros_like(self.groups.terms).index_add_(0, self.groups.of, losses)
        return self.groups.weights(sums)[self.groups.of] * sizes


def over_targets(targets: Sequence[Target], values: Tensor) -> Tensor:
    """The mean of values, shape (Q, ...), over the targets by their weights, shape (...)."""
    shares = [target.weight for target in targets]
    weights = torch.tensor(shares, dtype=values.dtype, device=values.device)
    total: Tensor = torch.tensordot(weights, values, dims=1)
    return total / weights.sum()


def target_gradients(
    model: FlatModel,
    objective: Objective,
    targets: Sequence[Target],
    theta: Tensor,
    chunk: int = CHUNK,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """Mean losses, shape (Q,), and their gradients at theta, shape (Q, P), in eval mode.

    A pass over every target's examples, `chunk` at a time, each rank taking its share of those.
    """
    losses, gradients = [], []
    for target in targets:
        about = target.about(objective)
        with model.at(theta, training=False) as module:
            if target.groups is not None:
                loss, terms = _of_groups(model, about, module, target, chunk, ranks, back=True), 1.0
            else:
                batches = _batches(model, target.examples, chunk, ranks)
                loss, terms = _totals(model, about, module, batches, ranks, back=True)
            total = model.gradient()
        losses.append(loss / terms)
        gradients.append(ranks.sum(total) / terms)
    return torch.tensor(losses, dtype=torch.float64), torch.stack(gradients)


def target_losses(
    model: FlatModel,
    objective: Objective,
    targets: Sequence[Target],
    theta: Tensor,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Mean losses at theta, shape (Q,), in eval mode; a forward pass over the targets.

    Bit for bit those that `target_gradients` finds on the way, so that they can be compared.
    """
    losses = []
    with model.at(theta, training=False) as module:
        for target in targets:
            about = target.about(objective)
            if target.groups is not None:
                losses.append(_of_groups(model, about, module, target, CHUNK, ranks, back=False))
                continue
            batches = _batches(model, target.examples, CHUNK, ranks)
            loss, terms = _totals(model, about, module, batches, ranks, back=False)
            losses.append(loss / terms)
    return torch.tensor(losses, dtype=torch.float64)


def target_graph(
    model: FlatModel,
    objective: Objective,
    targets: Sequence[Target],
    theta: Tensor,
    ranks: Ranks = ALONE,
) -> int:
    """Bytes that autograd keeps of the part of a target that `target_gradients` goes through first.

    The other parts are about as large, or smaller. Cost: a forward pass of it, for each target.
    """
    sizes = [0]
    for target in targets:
        for batch in islice(_batches(model, target.examples, CHUNK, ranks), 1):
            with (
                model.at(theta, training=False) as module,
                model.computing(exactly=True),
                counting(theta, *model.held) as kept,
            ):
                target.about(objective).losses(module, batch)
            sizes.append(sum(kept.values()))
    return max(sizes)


def row_metrics(
    model: FlatModel, objective: Objective, examples: Examples, theta: Tensor, chunk: int = 4096
) -> dict[str, Tensor]:
    """Every example's loss, size and the objective's own metrics at theta, in eval mode.

    Returns:
        name -> shape (n,), float64, on the CPU: `loss` is the example's summed loss and `size`
        how many terms that has; a mean loss is the one's sum over the other's.
    """
    metrics: dict[str, Tensor] = {}
    with model.at(theta, training=False) as module, torch.no_grad():
        for rows in examples.chunks(chunk):
            batch = examples.batch(rows, model.device)
            losses, more = losses_and_metrics(objective, module, batch)
            parts = {"loss": losses, "size": objective.sizes(batch), **more}
            for name, values in parts.items():
                whole = metrics.setdefault(name, torch.zeros(len(examples), dtype=torch.float64))
                whole[rows] = values.double().cpu()
    return metrics


def mean_metrics(
    model: FlatModel, objective: Objective, examples: Examples, theta: Tensor, chunk: int = 4096
) -> dict[str, float]:
    """Mean loss, and the objective's own metrics, at theta over all examples, in eval mode."""
    metrics = row_metrics(model, objective, examples, theta, chunk)
    loss = float(metrics.pop("loss").sum()) / float(metrics.pop("size").sum())
    return {"loss": loss} | {name: float(values.mean()) for name, values in metrics.items()}


def _batches(model: FlatModel, examples: Examples, chunk: int, ranks: Ranks) -> Iterator[Batch]:
    """This rank's share of every chunk."""
    return (examples.batch(rows, model.device) for rows in _shares(examples, chunk, ranks))


def _shares(examples: Examples, chunk: int, ranks: Ranks) -> Iterator[Tensor]:
    shares = (rows[own_share(ranks, len(rows))] for rows in examples.chunks(chunk))
    return (rows for rows in shares if len(rows))


def _totals(
    model: FlatModel,
    objective: Objective,
    module: nn.Module,
    batches: Iterable[Batch],
    ranks: Ranks,
    *,
    back: bool,
) -> tuple[float, float]:
    """Losses and sizes, added up in float64 over all batches and ranks.

    back: leave the gradient of this rank's sum in the module.
    """
    loss = terms = 0.0
    for batch in batches:
        with model.computing(exactly=True), torch.set_grad_enabled(back):
            losses = objective.losses(module, batch)
            if back:
                losses.sum().backward()
        loss += float(losses.detach().double().sum())
        terms += float(objective.sizes(batch).sum())
    loss, terms = ranks.sum(torch.tensor([loss, terms], dtype=torch.float64)).tolist()
    return loss, terms


def _of_groups(
    model: FlatModel,
    objective: Objective,
    module: nn.Module,
    target: Target,
    chunk: int,
    ranks: Ranks,
    *,
    back: bool,
) -> float:
    """The value of a target in groups.

    back: leave this rank's part of its gradient in the module. Where the worst group counts more it
    takes a forward pass before to know which that is.
    """
    groups, examples = target.groups, target.examples
    assert groups is not None

    def sums(weights: Tensor | None) -> Tensor:
        found = torch.zeros_like(groups.terms)
        for rows in _shares(examples, chunk, ranks):
            batch = examples.batch(rows, model.device)
            with model.computing(exactly=True), torch.set_grad_enabled(weights is not None):
                losses = objective.losses(module, batch)
                if weights is not None:
                    (weights[groups.of[rows]].to(losses) * losses).sum().backward()
            found.index_add_(0, groups.of[rows], losses.detach().double().cpu())
        return ranks.sum(found)

    first = sums(None) if groups.worst or not back else groups.terms
    return groups.value(sums(groups.weights(first)) if back else first)
