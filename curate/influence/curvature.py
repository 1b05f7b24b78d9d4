"""Back through a step's gradient: what of the loss's curvature is followed."""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from curate.datasets import map_leaves
from curate.errors import ModelError
from curate.influence.through_rule import vjp
from curate.models import BoundModel
from curate.trajectory import ChunkGradient, Step, Task, seeded_rng

Products = tuple[Tensor, Tensor | None]
"""Derivatives by weight, shape (Q, n), and by theta, shape (Q, P) or None for nothing."""


def exact(
    task: Task, step: Step, chunk: slice, part: ChunkGradient, cotangents: Tensor
) -> Products:
    """H a, the whole Hessian of the loss. One double backward, about 2 gradients."""
    del step, chunk
    by_weight, by_theta = _through(task, [part.total], [part.weights, part.theta], [cotangents])
    return by_weight, by_theta


def none(task: Task, step: Step, chunk: slice, part: ChunkGradient, cotangents: Tensor) -> Products:
    """No curvature: gradients are taken to be the same wherever the parameters are.

    Only the optimizer's own memory (momentum, second moments, decay) is
    followed. About 1 gradient, and wrong in size and order after a few steps.
    """
    del step, chunk
    return _through(task, [part.total], [part.weights], [cotangents])[0], None


def ggn(task: Task, step: Step, chunk: slice, part: ChunkGradient, cotangents: Tensor) -> Products:
    """J' (d^2 l / dz^2) J a: the generalised Gauss-Newton part of the Hessian.

    z = model(theta) are the model's outputs, J their Jacobian. It leaves out
    the curvature of the model itself, which is what makes it positive
    semidefinite for convex losses (Schraudolph, Neural Computation 14, 2002). With
    t = J a held fixed, both products are derivatives of <dl/dz, t>, by the
    weights and by z, and from z on by theta. About 4 gradients: a forward pass, J a by
    the derivative of u -> J' u, and one way back; no cheaper than `exact`.

    Raises:
        ModelError: the loss is linear in the model's outputs, for example because the model
            hands out a loss; or theta reaches it past them.
    """
    theta, weights = part.theta, part.weights
    batch = task.examples.batch(step.rows[chunk], task.model.device)
    model = _Cut(task.model.bind(theta, training=True))
    with seeded_rng(step.seed + chunk.start, task.model.device), task.model.computing():
        losses = task.objective.losses(model, batch)
    inputs = [*model.cuts, theta]
    found: list[Tensor | None] = list(
        torch.autograd.grad((weights * losses).sum(), inputs, create_graph=True, allow_unused=True)
    )
    *by_output, past = found
    ends = zip(model.outputs, model.cuts, by_output, strict=True)
    used = [(z, cut, g) for z, cut, g in ends if g is not None]
    outputs, cuts, gradients = ([end[i] for end in used] for i in range(3))
    if past is not None or _reached(outputs, model.cuts):
        raise ModelError(
            "curvature ggn needs the loss to be a function of what the model puts out, in tensors, "
            "mappings or tuples, and of nothing else that is trained; use curvature exact."
        )
    if any(z.ndim == 0 for z in cuts) or not _reached(gradients, cuts):
        raise ModelError(
            "curvature ggn needs the loss to be a function of the model's outputs, but the model "
            "hands out the loss itself; use curvature exact."
        )
    dummies = [torch.zeros_like(z, requires_grad=True) for z in outputs]
    (pulled,) = torch.autograd.grad(outputs, theta, dummies, create_graph=True)
    pushed = _through(task, [pulled], dummies, [cotangents], again=True)
    by_weight, *by_cut = vjp(gradients, [weights, *cuts], pushed)
    (by_theta,) = _through(task, outputs, [theta], by_cut)
    return by_weight, by_theta


def _through(
    task: Task, outputs: Sequence[Tensor], inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor], *, again: bool = False,
) -> list[Tensor]:  # fmt: skip
    """`vjp` through the model, whose layers cannot be vectorised where they are checkpointed."""
    return vjp(outputs, inputs, cotangents, again=again, at_once=not task.model.checkpointed)


class _Cut:
    """A model whose outputs are cut off from it, so that each is an input of what is made of it.

    An output that another one was made of would count twice otherwise.
    """

    def __init__(self, model: BoundModel) -> None:
        self._model = model
        self.outputs: list[Tensor] = []
        self.cuts: list[Tensor] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return map_leaves(self._model(*args, **kwargs), self._cut)

    def _cut(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.requires_grad:
            return leaf
        self.outputs.append(leaf)
        self.cuts.append(leaf.detach().requires_grad_())
        return self.cuts[-1]


def _reached(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> bool:
    """Whether any of the outputs was made of any of the inputs."""
    if not outputs or not inputs:
        return False
    ones = [torch.ones_like(z) for z in outputs]
    found = torch.autograd.grad(outputs, inputs, ones, retain_graph=True, allow_unused=True)
    return any(g is not None for g in found)


CURVATURES: MappingProxyType[
    str, Callable[[Task, Step, slice, ChunkGradient, Tensor], Products]
] = MappingProxyType({"exact": exact, "ggn": ggn, "none": none})
