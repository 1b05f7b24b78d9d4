"""The backward step: the only place where an adjoint goes back through a training step.

Two stages (DESIGN 3.2). First the vector-Jacobian product of the rule alone,
which needs no model; then, of the model, the Hessian product and every
candidate's derivative, both from ordinary gradients (`differences`, `slopes`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from curate.influence.differences import Differences
from curate.influence.through_rule import through_rule
from curate.rules import Adjoint, Rule, State
from curate.trajectory import Gradient, Step, Task


class BackwardStep(NamedTuple):
    """What one backward step yields.

    adjoint: of the state before the step; None if it was not asked for.
    derivatives: d_i = <grad l_i, a_g>, shape (Q, n): l_i is the candidate's
        summed loss and a_g the derivative of the target with respect to the
        step's mean gradient, before scale and clipping.
    sizes: n_i, terms of each candidate in the mean, shape (n,), float64.
    mean: the step's gradient before clipping, shape (P,).
    curvature: what the loss's curvature adds to the adjoint of theta, shape (Q, P).
    error: of that, in the adjoint of theta, as a share of it: the largest of the targets'.
    """

    adjoint: Adjoint | None
    derivatives: Tensor
    sizes: Tensor
    mean: Tensor
    curvature: Tensor
    error: float


def backward_step(
    task: Task, rule: Rule, state: State, step: Step, grad: Gradient, adjoint: Adjoint, *,
    propagate: bool = True, differences: Differences | None = None,
) -> BackwardStep:  # fmt: skip
    """Take the adjoint of the state after `step` to the state before it, scoring on the way.

    Args:
        state: the state before the step. grad: its gradient there.
        adjoint: of the state after it, Q targets at once.
        propagate: False at the first step of a window, where only the
            candidates' derivatives are still wanted: it saves the Hessian products.
        differences: what is remembered of steps scored before.

    Cost: a gradient and a third per target, twice that where the difference is central; without
    propagation a gradient, and a third per target. Memory: that of training, one chunk's graph
    at a time. Of several ranks, each goes back through its share.
    """
    differences = differences or Differences()
    to_gradient, direct = through_rule(rule, grad.mean, state, step.lrs, adjoint)
    if not propagate:
        _, slopes = differences.slopes.take(task, state.theta, step, list(to_gradient))
        bent = torch.zeros_like(to_gradient)
        return BackwardStep(None, step.scale * slopes, grad.sizes, grad.mean, bent, 0.0)
    found = differences.products(task, state.theta, step, grad, list(to_gradient))
    bent = torch.stack([each.bent for each in found])
    theta = direct[0] + bent
    sizes = [torch.linalg.vector_norm(x, dim=1).double().tolist() for x in (bent, theta)]
    errors = [e.error * b / t for e, b, t in zip(found, *sizes, strict=True) if t > 0]
    slopes = step.scale * torch.stack([each.slopes for each in found])
    return BackwardStep(
        (theta, *direct[1:]), slopes, grad.sizes, grad.mean, bent, max(errors, default=0.0)
    )


def final_adjoint(state: State, target_gradients: Tensor) -> Adjoint:
    """The adjoint where a window ends: target gradients, shape (Q, P), for theta; 0 for slots."""
    count = len(target_gradients)
    return (target_gradients, *(t.new_zeros(count, t.numel()) for t in state.tensors()[1:]))
