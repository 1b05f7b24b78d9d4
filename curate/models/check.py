"""Before a long run: can this model and objective be trained and differentiated as we do?"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curate.datasets import Examples
from curate.errors import ModelError
from curate.models.flat import FlatModel
from curate.models.from_path import FOREIGN, one_line
from curate.models.hidden import Hidden
from curate.models.objectives.base import Batch, Objective
from curate.models.objectives.classification import Classification
from curate.models.randomness import Source, seeded, undisturbed, usual_sources


def require_trainable(
    model: FlatModel, objective: Objective, examples: Examples, classes: int | None = None
) -> None:
    """Try a few small batches, in the model's own parameters, and leave everything as it was.

    Args:
        classes: how many outputs a classifier needs.

    Raises:
        ModelError: a classifier has fewer; a forward pass fails, changes something that the next
            one depends on, draws from where nothing can be seeded, does not depend on the
            trainable parameters, cannot be differentiated, or gives an example another loss
            depending on who shares its batch, in training or in eval mode.
    """
    batch = examples.batch(next(iter(examples.chunks(2))), model.device)
    hidden = Hidden(model.module, objective)
    sources = usual_sources(model.device)
    before = [_mark(tensor) for _, tensor in hidden.large]
    with undisturbed(sources), hidden.put_back() as changed:
        try:
            if classes is not None and isinstance(objective, Classification):
                _require_outputs(model, batch, classes)
            _differentiate(model, objective, batch)
            for (name, tensor), mark in zip(hidden.large, before, strict=True):
                if _mark(tensor) != mark:
                    raise ModelError(f"{name} changes in the forward pass{UNSEEN}")
            trial = _Trial(model, objective, examples, [*sources, *hidden.sources])
            _refuse_memory(trial, hidden, changed())
            _refuse_mixing(trial, hidden)
        except FOREIGN as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ModelError(f"the model cannot be trained on this data: {reason}") from error


UNSEEN = ", a state that the optimizer does not see; freeze it or make it a parameter."


def _mark(tensor: Tensor) -> tuple[int, float]:
    """What differs when a tensor was written to, be it through its `data`."""
    values = tensor.detach().to_dense()
    values = torch.view_as_real(values) if values.is_complex() else values
    return tensor._version, float(values.sum(dtype=torch.float64))


def _require_outputs(model: FlatModel, batch: Batch, classes: int) -> None:
    with model.at(model.read(), training=False) as module, torch.no_grad():
        output = module(batch["features"])
    if output.ndim == 2 and output.shape[1] < classes:
        raise ModelError(
            f"the model puts out {output.shape[1]} numbers for each example, but there are "
            f"{classes} classes; it needs one for each."
        )


def _differentiate(model: FlatModel, objective: Objective, batch: Batch) -> None:
    with model.at(model.read(), training=True) as module, model.computing():
        losses = objective.losses(module, batch)
        count = len(objective.sizes(batch))
        if losses.shape != (count,):
            raise ModelError(
                f"the objective must give one loss per example, shape ({count},), "
                f"but got {tuple(losses.shape)}."
            )
        if not losses.requires_grad:
            raise ModelError("the loss does not depend on any trainable parameter of the model.")
        losses.sum().backward()


class _Trial(NamedTuple):
    """Forward passes over rows of some examples, random numbers drawn as a seed says."""

    model: FlatModel
    objective: Objective
    examples: Examples
    sources: Sequence[Source]

    def losses(self, rows: Tensor, *, training: bool, seed: int = 0) -> Tensor:
        """Of the examples at `rows`, shape (n,)."""
        batch = self.examples.batch(rows, self.model.device)
        with (
            self.model.at(self.model.read(), training=training) as module,
            self.model.computing(),
            seeded(seed, self.sources),
        ):
            return self.objective.losses(module, batch).detach()


def _refuse_memory(trial: _Trial, hidden: Hidden, changed: list[str]) -> None:
    """Refuse a model whose loss depends on the passes before, `changed` by the first of all."""
    rows = next(iter(trial.examples.chunks(2)))
    with hidden.put_back():
        modes = (False, True, True, False)  # as a target, twice in training, as a target again
        losses = [trial.losses(rows, training=training) for training in modes]
    for one, other in ((losses[1], losses[2]), (losses[0], losses[3])):
        if torch.allclose(one, other, rtol=1e-5, atol=1e-8, equal_nan=True):
            continue
        if changed:
            raise ModelError(
                f"{changed[0]} changes in the forward pass, and the loss by it{UNSEEN}"
            )
        raise ModelError(
            f"the loss of the same row is {float(one[0]):.6g} and then {float(other[0]):.6g}, all "
            "that draws random numbers being seeded alike; have it draw from torch, NumPy or a "
            "generator that is an attribute of the model."
        )


def _refuse_mixing(trial: _Trial, hidden: Hidden) -> None:
    """Refuse a loss that depends on the other rows, by rows whose losses differ most."""
    rows = next(iter(trial.examples.chunks(8)))
    if len(rows) < 2:
        return
    with hidden.put_back():
        order = rows[trial.losses(rows, training=False).argsort().cpu()]
        low, middle, high = order[0], order[len(order) // 2], order[-1]
        pair = torch.stack([low, high])
        for training in (False, True):
            near, far = (
                trial.losses(torch.stack([middle, low, high, last]), training=training)
                for last in (low, high)
            )
            _require_same(near[:1], far[:1], "with one row", "with another", training)
            together, other = (trial.losses(pair, training=training, seed=k) for k in (0, 1))
            if torch.equal(together, other):  # else each shape of batch draws numbers of its own
                alone = trial.losses(pair[:1], training=training)
                _require_same(alone, together[:1], "alone", "with another", training)


def _require_same(one: Tensor, other: Tensor, how: str, or_how: str, training: bool) -> None:
    if torch.allclose(one, other, rtol=1e-4, atol=1e-6, equal_nan=True):
        return
    k = int((one - other).abs().argmax())
    raise ModelError(
        f"an example's loss{' in training' if training else ''} depends on who shares its batch "
        f"({float(one[k]):.6g} {how}, {float(other[k]):.6g} {or_how}), so no example has a score "
        "of its own; remove whatever normalizes or compares over the batch."
    )
