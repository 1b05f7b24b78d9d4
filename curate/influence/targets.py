"""Targets: named validation sets, their losses, and the gradients that start an adjoint."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

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
    each = [target.weight for target in targets]
    weights = torch.tensor(each, dtype=values.dtype, device=values.device)
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
        loss = terms = 0.0
        with model.at(theta, training=False) as module:
            for batch in _batches(model, target.examples, chunk, ranks):
                with model.computing():
                    part = objective.losses(module, batch)
                    part.sum().backward()
                loss += float(part.detach().double().sum())
                terms += float(objective.sizes(batch).sum())
            total = model.gradient()
        loss, terms = ranks.sum(torch.tensor([loss, terms], dtype=torch.float64)).tolist()
        losses.append(loss / terms)
        gradients.append(ranks.sum(total) / terms)
    return torch.tensor(losses, dtype=torch.float64), torch.stack(gradients)


def target_graph(
    model: FlatModel, objective: Objective, targets: Sequence[Target], theta: Tensor,
    ranks: Ranks = ALONE,
) -> int:  # fmt: skip
    """Bytes that autograd keeps of the part of a target that `target_gradients` goes through first.

    The other parts are about as large, or smaller. Cost: a forward pass of it, for each target.
    """
    sizes = [0]
    for target in targets:
        for batch in islice(_batches(model, target.examples, CHUNK, ranks), 1):
            with (
                model.at(theta, training=False) as module,
                model.computing(),
                counting(theta, *model.held) as found,
            ):
                objective.losses(module, batch)
            sizes.append(sum(found.values()))
    return max(sizes)


def target_losses(
    model: FlatModel, objective: Objective, targets: Sequence[Target], theta: Tensor,
    ranks: Ranks = ALONE,
) -> Tensor:  # fmt: skip
    """Mean losses at theta, shape (Q,), in eval mode; a forward pass over the targets.

    Bit for bit those that `target_gradients` finds on the way, so that they can be compared.
    """
    found = []
    with model.at(theta, training=False) as module, model.computing(), torch.no_grad():
        for target in targets:
            batches = _batches(model, target.examples, CHUNK, ranks)
            parts = ((objective.losses(module, batch), objective.sizes(batch)) for batch in batches)
            found.append(_mean(parts, ranks))
    return torch.tensor(found, dtype=torch.float64)


def row_metrics(
    model: FlatModel, objective: Objective, examples: Examples, theta: Tensor, chunk: int = 4096
) -> dict[str, Tensor]:
    """Of every example at theta, in eval mode: its loss, its size, the objective's own metrics.

    Returns:
        name -> shape (n,), float64, on the CPU: `loss` is the example's summed loss and `size`
        how many terms that has; a mean loss is the one's sum over the other's.
    """
    found: dict[str, Tensor] = {}
    with model.at(theta, training=False) as module, torch.no_grad():
        for rows in examples.chunks(chunk):
            batch = examples.batch(rows, model.device)
            parts = {
                "loss": objective.losses(module, batch),
                "size": objective.sizes(batch),
                **objective.metrics(module, batch),
            }
            for name, values in parts.items():
                whole = found.setdefault(name, torch.zeros(len(examples), dtype=torch.float64))
                whole[rows] = values.double().cpu()
    return found


def mean_metrics(
    model: FlatModel, objective: Objective, examples: Examples, theta: Tensor, chunk: int = 4096
) -> dict[str, float]:
    """Mean loss, and the objective's own metrics, at theta over all examples, in eval mode."""
    found = row_metrics(model, objective, examples, theta, chunk)
    loss = float(found.pop("loss").sum()) / float(found.pop("size").sum())
    return {"loss": loss} | {name: float(each.mean()) for name, each in found.items()}


def _batches(
    model: FlatModel, examples: Examples, chunk: int, ranks: Ranks = ALONE
) -> Iterator[Batch]:
    """This rank's share of every chunk."""
    own = (rows[own_share(ranks, len(rows))] for rows in examples.chunks(chunk))
    return (examples.batch(rows, model.device) for rows in own if len(rows))


def _mean(parts: Iterable[tuple[Tensor, Tensor]], ranks: Ranks = ALONE) -> float:
    """Of losses over their sizes, added up in float64."""
    loss = terms = 0.0
    for losses, sizes in parts:
        loss += float(losses.double().sum())
        terms += float(sizes.sum())
    sums = ranks.sum(torch.tensor([loss, terms], dtype=torch.float64))
    return float(sums[0] / sums[1])
