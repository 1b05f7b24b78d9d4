"""Gradients example by example, which the exact jump needs to take each example out."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from curate.datasets import mapped_tensors
from curate.errors import ModelError
from curate.models import FOREIGN, one_line
from curate.trajectory.step import Step, Task


def example_gradients(
    task: Task, theta: Tensor, step: Step, losses: Tensor, most: int
) -> Iterator[tuple[slice, Tensor]]:
    """grad l_i at theta of this rank's candidates of a step, in order, at most `most` at a time.

    One vectorized pass (`torch.func.vmap`) over the chunks of the forward step, with its RNG;
    the losses are compared, to check that it does the same. It alone takes the module
    as a function of theta (`functional_call`), which hooks on parameters do not see.

    Args:
        losses: l_i as the forward step found them, shape (n,).

    Yields:
        which of the step's candidates, and their gradients, shape (k, P).

    Raises:
        ModelError: the model cannot be vectorized, or its losses then differ.
    """
    tolerance = 3e-2 if task.model.autocast else 1e-3
    for chunk in task.chunks(step):
        for start in range(chunk.start, chunk.stop, most):
            piece = slice(start, min(start + most, chunk.stop))
            gradients, singly = _vectorized(task, theta, step, chunk, piece)
            together = losses[piece].to(singly)
            if not torch.allclose(singly, together, rtol=tolerance, atol=1e-5, equal_nan=True):
                worst = int((singly - together).abs().argmax())
                raise ModelError(
                    f"example by example, the loss is {float(singly[worst]):.6g} where the batch "
                    f"had {float(together[worst]):.6g} (dropout that falls otherwise does that); "
                    "use jump linear, or more memory for trajectory.gradients."
                )
            yield piece, gradients


def _vectorized(
    task: Task, theta: Tensor, step: Step, chunk: slice, piece: slice
) -> tuple[Tensor, Tensor]:
    model = task.model
    tensors, rebuild = mapped_tensors(task.examples.batch(step.rows[piece], model.device))

    def loss(theta: Tensor, *example: Tensor) -> Tensor:
        parameters = model.unpack(theta)

        def called(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model.module, parameters, args, kwargs)

        alone = rebuild([tensor.unsqueeze(0) for tensor in example])
        return task.objective.losses(called, alone)[0]

    singly = vmap(grad_and_value(loss), in_dims=(None, *[0] * len(tensors)), randomness="different")
    model.set_mode(training=True)
    try:
        # attention in matrix products, because nothing vectorized can look into masks as kernels do
        with (
            task.seeded(step.seed + chunk.start),
            sdpa_kernel(SDPBackend.MATH),
            model.computing(),
        ):
            gradients, losses = singly(theta.detach(), *tensors)
    except FOREIGN as error:
        raise ModelError(
            "the model cannot be computed example by example (torch.func.vmap): "
            f"{one_line(error)}; use jump linear."
        ) from error
    return gradients, losses
