"""The backward step: the only place where an adjoint goes back through a training step.

Two stages (DESIGN 3.2). First the vector-Jacobian product of the rule alone,
which needs no model; then one differentiation of <sum_i w_i grad l_i, a_g>
with respect to theta and w, which gives the Hessian product and every
candidate's derivative at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curate.rules import Rule, State
from curate.trajectory import Step, Task, chunk_losses, gradient, nonzero

Adjoint = tuple[Tensor, ...]
"""Derivative of Q target losses with respect to a state: one (Q, size) tensor for
each of `State.tensors()`, in that order."""


class BackwardStep(NamedTuple):
    """What one backward step yields.

    adjoint: of the state before the step; None if it was not asked for.
    derivatives: d_i = <grad l_i, a_g>, shape (Q, n): l_i is the candidate's
        summed loss and a_g the derivative of the target with respect to the
        step's mean gradient, before clipping.
    sizes: n_i, terms of each candidate in the mean, shape (n,).
    """

    adjoint: Adjoint | None
    derivatives: Tensor
    sizes: Tensor


class Linearised(NamedTuple):
    """Weighted gradient of a chunk, differentiable in theta and in the weights."""

    gradient: Tensor
    theta: Tensor
    weights: Tensor
    sizes: Tensor


def backward_step(
    task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint, *, propagate: bool = True
) -> BackwardStep:
    """Take the adjoint of the state after `step` to the state before it, scoring on the way.

    Args:
        state: the state before the step.
        adjoint: of the state after it, Q targets at once.
        propagate: False at the first step of a window, where only the
            candidates' derivatives are still wanted: it saves the Hessian product.

    Cost: about 4 gradients for Q = 1; one gradient more if the step is in
    micro-batches, since the rule has to see their sum first. The graph of one
    chunk is held at a time.
    """
    chunks = step.chunks()
    weights = step.weights.to(state.theta)
    whole = _linearise(task, state.theta, step, weights, chunks[0]) if len(chunks) == 1 else None
    if whole is None:
        mean = gradient(task, state.theta, step).mean
    else:
        mean = whole.gradient.detach() / nonzero((weights * whole.sizes).sum())
    to_gradient, direct = _through_rule(rule, mean, state, step.lrs, adjoint)

    derivatives, sizes = [], []
    curvature = torch.zeros_like(to_gradient)
    for chunk in chunks:
        part = whole or _linearise(task, state.theta, step, weights, chunk)
        inputs = [part.weights, part.theta] if propagate else [part.weights]
        by_weight, *by_theta = _vjp([part.gradient], inputs, [to_gradient])
        derivatives.append(by_weight)
        sizes.append(part.sizes)
        for product in by_theta:
            curvature += product
    all_sizes = torch.cat(sizes)
    before: Adjoint | None = None
    if propagate:
        before = (direct[0] + curvature / nonzero((weights * all_sizes).sum()), *direct[1:])
    return BackwardStep(before, torch.cat(derivatives, dim=1), all_sizes)


def final_adjoint(state: State, target_gradients: Tensor) -> Adjoint:
    """The adjoint where a window ends: target gradients, shape (Q, P), for theta; 0 for slots."""
    count = len(target_gradients)
    return (target_gradients, *(t.new_zeros(count, t.numel()) for t in state.tensors()[1:]))


def _linearise(
    task: Task, theta: Tensor, step: Step, weights: Tensor, chunk: slice
) -> Linearised:  # fmt: skip
    theta = theta.detach().requires_grad_()
    own_weights = weights[chunk].clone().requires_grad_()
    part = chunk_losses(task, theta, step, chunk)
    loss = (own_weights * part.losses).sum()
    (grad,) = torch.autograd.grad(loss, theta, create_graph=True)
    return Linearised(grad, theta, own_weights, part.sizes)


def _through_rule(
    rule: Rule, mean: Tensor, state: State, lrs: tuple[float, ...], adjoint: Adjoint
) -> tuple[Tensor, Adjoint]:
    inputs = [t.detach().requires_grad_() for t in (mean, *state.tensors())]
    with torch.enable_grad():
        after = rule.update(inputs[0], state.with_tensors(tuple(inputs[1:])), lrs)
    to_gradient, *direct = _vjp(after.tensors(), inputs, adjoint)
    return to_gradient, tuple(direct)


def _vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """Vector-Jacobian products, Q cotangents at once: (Q, *output) -> (Q, *input)."""
    count = len(cotangents[0])
    batched = count > 1
    found = torch.autograd.grad(
        outputs,
        inputs,
        list(cotangents) if batched else [c[0] for c in cotangents],
        allow_unused=True,
        is_grads_batched=batched,
    )
    return [
        x.new_zeros(count, *x.shape) if g is None else (g if batched else g.unsqueeze(0))
        for g, x in zip(found, inputs, strict=True)
    ]
