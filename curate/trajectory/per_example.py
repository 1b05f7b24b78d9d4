"""Gradients example by example: what the exact jump takes each of them out with."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from curate.datasets import mapped_tensors
from curate.errors import ModelError
from curate.models import FlatModel
from curate.trajectory.step import Step, Task, seeded_rng

FOREIGN = (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError)


def example_gradients(
    task: Task, theta: Tensor, step: Step, losses: Tensor, most: int
) -> Iterator[tuple[slice, Tensor]]:
    """grad l_i at theta of this rank's candidates of a step, in order, at most `most` at a time.

    One vectorized pass (`torch.func.vmap`) over the same chunks, with the same
    RNG, as the forward step's; that it does the same is checked by its losses. It alone takes
    the module as a function of theta (`functional_call`), which hooks on parameters do not see.

    Args:
        losses: l_i as the forward step found them, shape (n,).

    Yields:
        which of the step's candidates, and their gradients, shape (k, P).

    Raises:
        ModelError: the model cannot be vectorized, or its losses then are others.
    """
    for chunk in task.chunks(step):
        for start in range(chunk.start, chunk.stop, most):
            piece = slice(start, min(start + most, chunk.stop))
            gradients, found = _vectorized(task, theta, step, chunk, piece)
            expected = losses[piece].to(found)
            most_off = 3e-2 if task.model.autocast else 1e-3
            if not torch.allclose(found, expected, rtol=most_off, atol=1e-5, equal_nan=True):
                worst = int((found - expected).abs().argmax())
                raise ModelError(
                    f"taken example by example, the loss is {float(found[worst]):.6g} where the "
                    f"batch had {float(expected[worst]):.6g} (dropout that falls otherwise does "
                    "that); use jump linear, or more memory for trajectory.gradients."
                )
            yield piece, gradients


def _vectorized(
    task: Task, theta: Tensor, step: Step, chunk: slice, piece: slice
) -> tuple[Tensor, Tensor]:
    batch = task.examples.batch(step.rows[piece], task.model.device)
    tensors, rebuild = mapped_tensors(batch)
    device = task.model.device

    def loss(theta: Tensor, *one: Tensor) -> Tensor:
        alone = rebuild([tensor.unsqueeze(0) for tensor in one])
        return task.objective.losses(_Called(task.model, theta), alone)[0]

    each = vmap(grad_and_value(loss), in_dims=(None, *[0] * len(tensors)), randomness="different")
    try:
        task.model.set_mode(training=True)
        with (
            seeded_rng(step.seed + chunk.start, device),
            _written_out(),
            task.model.computing(),
        ):
            gradients, losses = each(theta.detach(), *tensors)
    except FOREIGN as error:
        raise ModelError(
            "the model cannot be taken example by example (torch.func.vmap): "
            f"{' '.join(str(error).split())}; use jump linear."
        ) from error
    return gradients, losses


class _Called:
    """The module as a function of theta, which is what can be vectorized; an objective's model."""

    def __init__(self, model: FlatModel, theta: Tensor) -> None:
        self._module, self._parameters = model.module, model.unpack(theta)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self._module, self._parameters, args, kwargs)


def _written_out() -> AbstractContextManager[None]:
    """Attention in matrix products: its kernels look into masks, which nothing vectorized can."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context
