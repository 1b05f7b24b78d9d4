"""The backward step: the only place where an adjoint goes back through a training step.

Two stages (DESIGN 3.2). First the vector-Jacobian product of the rule alone,
which needs no model; then one differentiation of <sum_i w_i grad l_i, a_g>
with respect to theta and w, which gives the Hessian product and every
candidate's derivative at once.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from curate.influence.curvature import CURVATURES
from curate.influence.through_rule import through_rule
from curate.rules import Adjoint, Rule, State
from curate.trajectory import ChunkGradient, Step, Task, chunk_gradient, gradient, nonzero


class BackwardStep(NamedTuple):
    """What one backward step yields.

    adjoint: of the state before the step; None if it was not asked for.
    derivatives: d_i = <grad l_i, a_g>, shape (Q, n): l_i is the candidate's
        summed loss and a_g the derivative of the target with respect to the
        step's mean gradient, before scale and clipping.
    sizes: n_i, terms of each candidate in the mean, shape (n,), float64.
    mean: the step's gradient before clipping, shape (P,).
    curvature: what the loss's curvature adds to the adjoint of theta, shape (Q, P).
    """

    adjoint: Adjoint | None
    derivatives: Tensor
    sizes: Tensor
    mean: Tensor
    curvature: Tensor


def backward_step(
    task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint, *,
    propagate: bool = True, tape: ChunkGradient | None = None, curvature: str = "exact",
) -> BackwardStep:  # fmt: skip
    """Take the adjoint of the state after `step` to the state before it, scoring on the way.

    Args:
        state: the state before the step.
        adjoint: of the state after it, Q targets at once.
        propagate: False at the first step of a window, where only the
            candidates' derivatives are still wanted: it saves the Hessian product.
        tape: what this rank adds to the step's gradient at `state`, with its graph, if kept.
        curvature: what of the Hessian is followed, one of `CURVATURES`.

    Cost: about 4 gradients for Q = 1, one less without curvature (or without
    propagation), one to two more for `ggn`; one less with a tape; one more without
    if the step is in micro-batches, since the rule has to see their sum first.
    The graph of one chunk is held at a time. Of several ranks, each goes back through its share.
    """
    chunks, theta = task.chunks(step), state.theta
    if tape is None and len(chunks) == 1:
        tape = chunk_gradient(task, theta, step, chunks[0], differentiable=True)
    mean, _, sizes = gradient(task, theta, step, tape)
    to_gradient, direct = through_rule(rule, mean, state, step.lrs, adjoint)
    if step.scale != 1:
        to_gradient = to_gradient * step.scale

    derivatives = [to_gradient[:, :0]]
    bent: Tensor | None = None
    for chunk in chunks:
        part = tape or chunk_gradient(task, theta, step, chunk, differentiable=True)
        through = CURVATURES[curvature if propagate else "none"]
        by_weight, by_theta = through(task, step, chunk, part, to_gradient)
        derivatives.append(by_weight)
        if by_theta is not None:
            bent = by_theta if bent is None else bent.add_(by_theta)
    bent = torch.zeros_like(to_gradient) if bent is None else bent
    found = task.ranks.join(torch.cat(derivatives, dim=1), len(step.rows))
    before: Adjoint | None = None
    if propagate:
        terms = (step.weights.to(sizes) * sizes).sum()
        bent = task.ranks.sum(bent).div_(nonzero(terms))
        before = (direct[0] + bent, *direct[1:])
    return BackwardStep(before, found, sizes, mean, bent)


def final_adjoint(state: State, target_gradients: Tensor) -> Adjoint:
    """The adjoint where a window ends: target gradients, shape (Q, P), for theta; 0 for slots."""
    count = len(target_gradients)
    return (target_gradients, *(t.new_zeros(count, t.numel()) for t in state.tensors()[1:]))
