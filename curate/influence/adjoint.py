"""The backward step: the only place where an adjoint goes back through a training step.

Two stages (DESIGN 3.2). First the vector-Jacobian product of the rule alone,
which needs no model; then, of the model, the Hessian product and every
candidate's derivative, both from ordinary gradients (`differences`, `slopes`).
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from curate.influence.differences import Differences
from curate.influence.point import Point
from curate.influence.slopes import Seen
from curate.influence.through_rule import through_rule
from curate.rules import Adjoint, Rule, State
from curate.trajectory import Gradient, Step, Task


class Following(NamedTuple):
    """The step after the one that is scored, as the way back left it.

    mean: its gradient, shape (P,). lrs: its learning rates. adjoint: of the state
    after it. curvature: what the loss's curvature in it adds to the adjoint of
    the parameters before it, shape (Q, P).
    """

    mean: Tensor
    lrs: tuple[float, ...]
    adjoint: Adjoint
    curvature: Tensor


@dataclass(frozen=True)
class Linearization:
    """A recorded step as the way back comes to it.

    state: before the step. grad: the step's gradient there. adjoint: of the state after it, Q
    targets at once. following: the next step, for `jump_of`; None after the last.
    """

    rule: Rule
    state: State
    step: Step
    grad: Gradient
    adjoint: Adjoint
    following: Following | None = None


class BackwardStep(NamedTuple):
    """The result of one backward step.

    adjoint: of the state before the step; None if it was not asked for.
    derivatives: d_i = <grad l_i, a_g>, shape (Q, n): l_i is the candidate's
        summed loss and a_g the derivative of the target with respect to the
        step's mean gradient, before scale and clipping.
    curvature: what the loss's curvature adds to the adjoint of theta, shape (Q, P).
    error: of that, in the adjoint of theta, as a share of it: the largest of the targets'.
    """

    adjoint: Adjoint | None
    derivatives: Tensor
    curvature: Tensor
    error: float


def backward_step(
    task: Task,
    at: Linearization,
    differences: Differences,
    *,
    propagate: bool = True,
    seen: Seen | None = None,
) -> BackwardStep:
    """Take the adjoint of the state after a step to the state before it, scoring on the way.

    Args:
        differences: what is remembered of steps scored before.
        propagate: False at the first step of a window, where only the
            candidates' derivatives are still wanted: it saves the Hessian products.
        seen: the pass that recorded the step, where it was watched (`Slopes.see`).

    Cost: a gradient and a third per target, twice that where the difference is central; without
    propagation a gradient, and a third per target, or only the latter of a step that was
    seen. Memory: that of training, one chunk's graph at a time. With several ranks, each goes
    back through its share.
    """
    point = Point(task, at.state.theta, at.step)
    to_gradient, direct = through_rule(at.rule, at.grad.mean, at.state, at.step.lrs, at.adjoint)
    if not propagate:
        if seen is None:
            _, slopes = differences.slopes.take(point, list(to_gradient))
        else:
            slopes = differences.slopes.along(seen, list(to_gradient))
        return BackwardStep(None, at.step.scale * slopes, torch.zeros_like(to_gradient), 0.0)
    products = differences.products(point, at.grad, list(to_gradient))
    bent = torch.stack([product.bent for product in products])
    theta = direct[0] + bent
    sizes = [torch.linalg.vector_norm(x, dim=1).double().tolist() for x in (bent, theta)]
    errors = [p.error * b / t for p, b, t in zip(products, *sizes, strict=True) if t > 0]
    slopes = at.step.scale * torch.stack([product.slopes for product in products])
    return BackwardStep((theta, *direct[1:]), slopes, bent, max(errors, default=0.0))


def final_adjoint(state: State, target_gradients: Tensor) -> Adjoint:
    """The adjoint where a window ends: target gradients, shape (Q, P), for theta; 0 for slots."""
    count = len(target_gradients)
    return (target_gradients, *(t.new_zeros(count, t.numel()) for t in state.tensors()[1:]))
