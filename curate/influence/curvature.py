"""Back through a step's gradient: what of the loss's curvature is followed."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from curate.datasets import leaves
from curate.errors import ModelError
from curate.models import BoundModel, differentiable_attention
from curate.trajectory import ChunkGradient, Step, Task, seeded_rng

Products = tuple[Tensor, Tensor | None]
"""Derivatives by weight, shape (Q, n), and by theta, shape (Q, P) or None for nothing."""


def vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor],
    *, again: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Vector-Jacobian products, Q cotangents at once: (Q, *output) -> (Q, *input).

    The graph is freed unless it is to be gone through `again`.
    """
    count = len(cotangents[0])
    batched = count > 1
    found = torch.autograd.grad(
        outputs,
        inputs,
        list(cotangents) if batched else [c[0] for c in cotangents],
        allow_unused=True,
        is_grads_batched=batched,
        retain_graph=again,
    )
    return [
        x.new_zeros(count, *x.shape) if g is None else (g if batched else g.unsqueeze(0))
        for g, x in zip(found, inputs, strict=True)
    ]


def exact(
    task: Task, step: Step, chunk: slice, part: ChunkGradient, cotangents: Tensor
) -> Products:
    """H a, the whole Hessian of the loss. One double backward, about 2 gradients."""
    del task, step, chunk
    by_weight, by_theta = vjp([part.total], [part.weights, part.theta], [cotangents])
    return by_weight, by_theta


def none(task: Task, step: Step, chunk: slice, part: ChunkGradient, cotangents: Tensor) -> Products:
    """No curvature: gradients are taken to be the same wherever the parameters are.

    Only the optimizer's own memory (momentum, second moments, decay) is
    followed. About 1 gradient, and wrong in size and order after a few steps.
    """
    del task, step, chunk
    return vjp([part.total], [part.weights], [cotangents])[0], None


def ggn(task: Task, step: Step, chunk: slice, part: ChunkGradient, cotangents: Tensor) -> Products:
    """J' (d^2 l / dz^2) J a: the generalised Gauss-Newton part of the Hessian.

    z = model(theta) are the model's outputs, J their Jacobian. It leaves out
    the curvature of the model itself, which is what makes it positive
    semidefinite for convex losses (Schraudolph, Neural Computation 14, 2002). With
    t = J a held fixed, both products are derivatives of <dl/dz, t>, by the
    weights and by theta. About 4 gradients: a forward pass, J a by the
    derivative of u -> J' u, and one way back; no cheaper than `exact`.

    Raises:
        ModelError: the loss is linear in the model's outputs, for example because
            the model hands out a loss.
    """
    theta, weights = part.theta, part.weights
    batch = task.examples.batch(step.rows[chunk], task.model.device)
    model = _Watched(task.model.bind(theta, training=True))
    with seeded_rng(step.seed + chunk.start, task.model.device), differentiable_attention():
        losses = task.objective.losses(model, batch)
    outputs = [z for z in model.outputs if z.requires_grad]
    by_output = torch.autograd.grad(
        (weights * losses).sum(), outputs, create_graph=True, allow_unused=True
    )
    used = [(z, g) for z, g in zip(outputs, by_output, strict=True) if g is not None]
    if not used or any(z.ndim == 0 or z is losses for z, _ in used):
        raise ModelError(
            "curvature ggn needs the loss to be a function of the model's outputs, but the model "
            "hands out the loss itself; use curvature exact."
        )
    outputs, gradients = [z for z, _ in used], [g for _, g in used]
    dummies = [torch.zeros_like(z, requires_grad=True) for z in outputs]
    (pulled,) = torch.autograd.grad(outputs, theta, dummies, create_graph=True)
    pushed = vjp([pulled], dummies, [cotangents], again=True)
    by_weight, by_theta = vjp(gradients, [weights, theta], pushed)
    return by_weight, by_theta


class _Watched:
    """A model that remembers the tensors it puts out."""

    def __init__(self, model: BoundModel) -> None:
        self._model = model
        self.outputs: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._model(*args, **kwargs)
        self.outputs += [leaf for leaf in leaves(output) if isinstance(leaf, Tensor)]
        return output


CURVATURES: MappingProxyType[
    str, Callable[[Task, Step, slice, ChunkGradient, Tensor], Products]
] = MappingProxyType({"exact": exact, "ggn": ggn, "none": none})
