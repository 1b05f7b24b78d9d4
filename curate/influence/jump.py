"""The exact jump: the step that an example is left out of, done again without it.

Adam's update is very nonlinear in the gradient, so most of what a derivative
gets wrong about a removal it gets wrong in the very step the example is removed
from. That step needs no derivative: the state after it without the example can
be computed (DESIGN 3.4).

Nor does the rule's own part of the next step. While v is still made of one or two
gradients, a removal takes most of it away, and 1 / sqrt(v) is nothing like its
tangent: on digits the first step's influences, linear from there, are wrong by as
much as they are large (`examples/benchmarks/RESULTS.md`). So the perturbed state is
put through the rule once more, with the gradient that was recorded, and only the
change of that gradient, the loss's curvature, is followed linearly from the start.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

from curate.influence.adjoint import Linearization
from curate.rules import Adjoint, State, updated
from curate.trajectory import Task, example_gradients, nonzero


def jump_of(
    at: Linearization, update: Callable[..., State] = updated
) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], Adjoint]:
    """Where a step's gradient leads to, and how the target depends on that.

    update: `Rule.update` where that is to be vectorized.

    Returns:
        a function from the gradient, shape (P,), to tensors of any sizes; and for each
        of them a cotangent, shape (Q, size): a difference of two gradients' outcomes,
        multiplied by them, is the predicted change of the target losses. In float64: a removal
        moves a parameter by less than float32 resolves.
    """
    rule, lrs, following = at.rule, at.step.lrs, at.following
    before = at.state.with_tensors(tuple(t.double() for t in at.state.tensors()))

    def outcome(gradient: Tensor) -> tuple[Tensor, ...]:
        after = update(rule, gradient, before, lrs)
        if following is None:
            return after.tensors()
        again = update(rule, following.mean.double(), after, following.lrs)
        return (after.theta, *again.tensors())

    cotangents = at.adjoint if following is None else (following.curvature, *following.adjoint)
    return outcome, tuple(cotangent.double() for cotangent in cotangents)


def effect(moved: tuple[Tensor, ...], as_it_was: tuple[Tensor, ...], cotangents: Adjoint) -> Tensor:
    """Change of the target losses, shape (..., Q), from outcomes of shapes (..., size)."""
    parts = zip(moved, as_it_was, cotangents, strict=True)
    return torch.stack([(m - a) @ cotangent.T for m, a, cotangent in parts]).sum(dim=0)


def exact_jump(task: Task, at: Linearization, removal: str, memory: int) -> Tensor:
    """Predicted change of the target loss if a candidate had been left out of its step.

        influence_i = < a_{t+1}, s' - s_{t+1} >       s' = U(g^{-i}, s_t)
        renormalised   g^{-i} = (N g - w_i grad l_i) / (N - w_i n_i)
        fixed          g^{-i} = g - w_i grad l_i / N

    with g the step's mean gradient and N = sum_j w_j n_j; a step with nothing
    left has gradient 0. U is the rule of the forward step itself, clipping
    included, a_t the adjoint of s_t. With a following step, the inner product is

        < a_{t+2}, U(g_{t+1}, s') - s_{t+2} > + < c_{t+1}, theta' - theta_{t+1} >

    with c the part of a_{t+1} that is the loss's curvature, which is the same to first order.
    Positive: the example helps. Unit: the target's loss unit.

    Cost: one vectorized pass of per-example gradients (about 2 gradients), and
    2 n updates of the rule, O(n P), shared by the ranks. Memory: at most `memory`
    bytes, and one example's worth.

    Args:
        removal: "renormalised" or "fixed".

    Returns:
        influences, float64, shape (Q, n).
    """
    step, sizes = at.step, at.grad.sizes.double()
    g, w = at.grad.mean.double(), step.weights.to(at.grad.mean.device).double()
    total = nonzero((w * sizes).sum())
    outcome, cotangents = jump_of(at, lambda rule, *given: rule.update(*given))
    with torch.no_grad():
        as_it_was = outcome(g)
        row_bytes = 8 * sum(t.numel() for t in as_it_was) * 4  # gradient, updates, temporaries
        most = max(1, memory // row_bytes)
        changes = [g.new_zeros(0, len(cotangents[0]))]
        for piece, gradients in example_gradients(task, at.state.theta, step, at.grad.losses, most):
            shares = step.scale * w[piece, None] * gradients.double()
            left = (total - w[piece] * sizes[piece])[:, None]
            if removal == "fixed":
                without = g - shares / total
            else:
                alone = left <= 1e-12 * total
                without = ((total * g - shares) / left.where(~alone, 1.0)).where(~alone, 0.0)
            changes.append(effect(vmap(outcome)(without), as_it_was, cotangents))
    return task.join(torch.cat(changes).T, step)
