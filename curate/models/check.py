"""Before a long run: can this model and objective be trained and differentiated as we do?"""

from collections.abc import Callable, Sequence
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
from curate.models.randomness import Source, undisturbed, usual_sources


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
    hidden = Hidden(model.module, objective)
    sources = usual_sources(model.device)
    trial = _Trial(model, objective, examples, [*sources, *hidden.sources])
    with (
        undisturbed(sources),
        model.at(model.read(), training=True),
        hidden.put_back() as changed,
    ):
        try:
            if classes is not None and isinstance(objective, Classification):
                _require_outputs(trial, classes)
            before = [_mark(tensor) for _, tensor in hidden.large]
            _differentiate(trial)
            for (name, tensor), mark in zip(hidden.large, before, strict=True):
                if _mark(tensor) != mark:
                    raise ModelError(f"{name} changes in the forward pass{UNSEEN}")
            rows = trial.apart()
            first = _refuse_memory(trial, rows, changed)
            if len(rows) > 1:
                _refuse_mixing(trial, rows, first)
        except FOREIGN as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ModelError(f"the model cannot be trained on this data: {reason}") from error


UNSEEN = ", a state that the optimizer does not see; freeze it or make it a parameter."


def _mark(tensor: Tensor) -> tuple[int, float]:
    """What differs when a tensor was written to, be it through its `data`."""
    values = tensor.detach().to_dense()
    values = torch.view_as_real(values) if values.is_complex() else values
    return tensor._version, float(values.sum(dtype=torch.float64))


class _Trial(NamedTuple):
    """Passes over rows of some examples, by a model with its parameters in it (`FlatModel.at`)."""

    model: FlatModel
    objective: Objective
    examples: Examples
    sources: Sequence[Source]

    def batch(self, count: int) -> Batch:
        """The first of the examples, at most `count`."""
        return self.examples.batch(next(iter(self.examples.chunks(count))), self.model.device)

    def losses(self, rows: Tensor, *, training: bool, seed: int = 0) -> Tensor:
        """Of the examples at `rows`, shape (n,), random numbers drawn as a seed says."""
        batch = self.examples.batch(rows, self.model.device)
        self.model.set_mode(training=training)
        for source in self.sources:
            source.seed(seed)
        with self.model.computing():
            return self.objective.losses(self.model.module, batch).detach()

    def drew(self) -> bool:
        """Whether the last pass, seeded with 0, drew random numbers."""
        now = [source.state() for source in self.sources]
        for source in self.sources:
            source.seed(0)
        return any(map(Source.moved_from, self.sources, now))

    def apart(self) -> Tensor:
        """Four rows: a middle one between those whose losses differ most, the lowest again.

        One row if there is but one.
        """
        rows = next(iter(self.examples.chunks(8)))
        if len(rows) < 2:
            return rows
        order = rows[self.losses(rows, training=False).argsort().cpu()]
        return order[[len(order) // 2, 0, -1, 0]]


def _require_outputs(trial: _Trial, classes: int) -> None:
    trial.model.set_mode(training=False)
    with torch.no_grad():
        output = trial.model.module(trial.batch(2)["features"])
    if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] < classes:
        raise ModelError(
            f"the model puts out {output.shape[1]} numbers for each example, but there are "
            f"{classes} classes; it needs one for each."
        )


def _differentiate(trial: _Trial) -> None:
    batch = trial.batch(2)
    trial.model.set_mode(training=True)
    with trial.model.computing():
        losses = trial.objective.losses(trial.model.module, batch)
        count = len(trial.objective.sizes(batch))
        if losses.shape != (count,):
            raise ModelError(
                f"the objective must give one loss per example, shape ({count},), "
                f"but got {tuple(losses.shape)}."
            )
        if not losses.requires_grad:
            raise ModelError("the loss does not depend on any trainable parameter of the model.")
        losses.sum().backward()


class _First(NamedTuple):
    """The losses of a pass that others are compared with; whether it drew random numbers."""

    losses: Tensor
    drew: bool


def _refuse_memory(
    trial: _Trial, rows: Tensor, changed: Callable[[], list[str]]
) -> dict[bool, _First]:
    """Refuse a model whose loss depends on the passes before.

    changed: gives the names of what the passes have changed. Returns: the first pass in eval and
    the last in training mode.
    """
    first: dict[bool, _First] = {}
    for training in (False, True, True, False):  # as a target, twice in training, as a target again
        losses = trial.losses(rows, training=training)
        if training not in first:
            first[training] = _First(losses, trial.drew())
            continue
        one = first[training].losses
        k = _differing(one, losses, rtol=1e-5, atol=1e-8)
        if k is None:
            continue
        trial.model.set_mode(training=True)  # as it was before
        names = changed()
        if names:
            raise ModelError(f"{names[0]} changes in the forward pass, and the loss by it{UNSEEN}")
        raise ModelError(
            f"the loss of the same row is {float(one[k]):.6g} and then {float(losses[k]):.6g}, all "
            "that draws random numbers being seeded alike; have it draw from torch, NumPy or a "
            "generator that is an attribute of the model."
        )
    return first


def _refuse_mixing(trial: _Trial, rows: Tensor, first: dict[bool, _First]) -> None:
    """Refuse a loss that depends on the other rows of its batch.

    rows: a middle one, the lowest, the highest, the lowest again. first: their passes. Where these
    are the same bit for bit in both modes, what holds of one holds of the other.
    """
    modes = list(first)
    if torch.equal(*(first[mode].losses for mode in modes)):
        modes = modes[:1]
    for training in modes:
        near, drew = first[training]
        far = trial.losses(rows[[0, 1, 2, 2]], training=training)
        _require_same(near[:3], far[:3], "with one row", "with another", training)
        if drew and not torch.equal(near, trial.losses(rows, training=training, seed=1)):
            continue  # each shape of batch draws numbers of its own
        alone = trial.losses(rows[1:2], training=training)
        _require_same(alone, near[1:2], "alone", "with another", training)


def _require_same(one: Tensor, other: Tensor, how: str, or_how: str, training: bool) -> None:
    k = _differing(one, other, rtol=1e-4, atol=1e-6)
    if k is None:
        return
    raise ModelError(
        f"an example's loss{' in training' if training else ''} depends on who shares its batch "
        f"({float(one[k]):.6g} {how}, {float(other[k]):.6g} {or_how}), so no example has a score "
        "of its own; remove whatever normalizes or compares over the batch."
    )


def _differing(one: Tensor, other: Tensor, *, rtol: float, atol: float) -> int | None:
    """The first entry in which two vectors are not the same; None if they are."""
    differ = ~torch.isclose(one, other, rtol=rtol, atol=atol, equal_nan=True)
    return int(differ.int().argmax()) if bool(differ.any()) else None
