"""Targets: named validation sets, their losses, and the gradients that start an adjoint."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from curate.datasets import Examples
from curate.models import Batch, FlatModel, Objective
from curate.runtime.ranks import ALONE, Ranks, own_share
from curate.trajectory import counting

CHUNK = 1024
"""Examples at a time: the same for losses that are compared, so that they round alike."""


@dataclass(frozen=True)
class Target:
    """A named set of examples whose mean loss is what influences are about.

    weight: above or equal to 0, in the mean over several targets, see `over_targets`.
    """

    name: str
    examples: Examples
    weight: float = 1.0


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
        batches = _batches(model, target.examples, chunk, ranks)
        with model.at(theta, training=False) as module:
            loss, terms = _totals(model, objective, module, batches, ranks, back=True)
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
            batches = _batches(model, target.examples, CHUNK, ranks)
            loss, terms = _totals(model, objective, module, batches, ranks, back=False)
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
                objective.losses(module, batch)
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
            parts = {
                "loss": objective.losses(module, batch),
                "size": objective.sizes(batch),
                **objective.metrics(module, batch),
            }
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
    shares = (rows[own_share(ranks, len(rows))] for rows in examples.chunks(chunk))
    return (examples.batch(rows, model.device) for rows in shares if len(rows))


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
