"""Before a long run: can this model and objective be trained and differentiated as we do?"""

import torch
from torch import nn

from curate.datasets import Examples
from curate.errors import ModelError
from curate.models.flat import FlatModel
from curate.models.from_path import FOREIGN, one_line
from curate.models.objectives.base import Batch, Objective
from curate.models.objectives.classification import Classification


def require_trainable(
    model: FlatModel, objective: Objective, examples: Examples, classes: int | None = None
) -> None:
    """Try one batch of two examples, in the model's own parameters.

    Args:
        classes: how many outputs a classifier needs.

    Raises:
        ModelError: a classifier has fewer; a forward pass fails, writes to a buffer, does not
            depend on the trainable parameters, cannot be differentiated, or gives an
            example another loss depending on who shares its batch.
    """
    rows = torch.arange(min(2, len(examples)))
    batch = examples.batch(rows, model.device)
    before = _versions(model.module)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        try:
            if classes is not None and isinstance(objective, Classification):
                _require_outputs(model, batch, classes)
            _differentiate(model, objective, batch)
        except FOREIGN as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise ModelError(f"the model cannot be trained on this data: {reason}") from error
        for name, version in _versions(model.module).items():
            if before.get(name) != version:
                raise ModelError(
                    f"{name} changes in the forward pass, a state that the optimizer does "
                    "not see; freeze it or make it a parameter."
                )
        _refuse_mixing(model, objective, examples, rows)


def _versions(module: nn.Module) -> dict[str, int]:
    """How often each buffer and parameter has been written to."""
    named = [*module.named_buffers(), *module.named_parameters()]
    return {name: tensor._version for name, tensor in named}


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


def _refuse_mixing(
    model: FlatModel, objective: Objective, examples: Examples, rows: torch.Tensor
) -> None:
    with model.at(model.read(), training=False) as module, torch.no_grad():
        together, *alone = (
            objective.losses(module, examples.batch(part, model.device))
            for part in (rows, *rows.split(1))
        )
    if not torch.allclose(together, torch.cat(alone), rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ModelError(
            "an example's loss depends on who shares its batch "
            f"({float(alone[0]):.6g} alone, {float(together[0]):.6g} with another), so no example "
            "has a score of its own; remove whatever normalizes or compares over the batch."
        )
