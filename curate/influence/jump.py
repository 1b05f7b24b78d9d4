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
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from curate.rules import Adjoint, Rule, State
from curate.trajectory import Step, Task, example_gradients, nonzero


class Following(NamedTuple):
    """The step after the one that is left out of, as the way back found it.

    mean: its gradient, shape (P,). lrs: its learning rates. adjoint: of the state
    after it. curvature: what the loss's curvature in it adds to the adjoint of
    the parameters before it, shape (Q, P).
    """

    mean: Tensor
    lrs: tuple[float, ...]
    adjoint: Adjoint
    curvature: Tensor


def jump_of(
    rule: Rule, state: State, step: Step, adjoint: Adjoint, following: Following | None
) -> tuple[Callable[[Tensor], tuple[Tensor, ...]], Adjoint]:
    """What a step's gradient leads to, and what the target makes of it.

    Returns:
        a function from the gradient, shape (P,), to tensors of any sizes; and for each
        of them a cotangent, shape (Q, size): a difference of two gradients' outcomes,
        multiplied by them, is the predicted change of the target losses. In float64: a removal
        moves a parameter by less than float32 resolves.
    """
    before = state.with_tensors(tuple(t.double() for t in state.tensors()))
    if following is None:
        return (
            lambda gradient: rule.update(gradient, before, step.lrs).tensors(),
            tuple(cotangent.double() for cotangent in adjoint),
        )
    mean = following.mean.double()

    def outcome(gradient: Tensor) -> tuple[Tensor, ...]:
        after = rule.update(gradient, before, step.lrs)
        return (after.theta, *rule.update(mean, after, following.lrs).tensors())

    cotangents = (following.curvature, *following.adjoint)
    return outcome, tuple(cotangent.double() for cotangent in cotangents)


def effect(moved: tuple[Tensor, ...], as_it_was: tuple[Tensor, ...], cotangents: Adjoint) -> Tensor:
    """Change of the target losses, shape (..., Q), from outcomes of shapes (..., size)."""
    parts = zip(moved, as_it_was, cotangents, strict=True)
    return torch.stack([(m - a) @ cotangent.T for m, a, cotangent in parts]).sum(dim=0)


def exact_jump(
    task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint, *,
    mean: Tensor, losses: Tensor, sizes: Tensor, removal: str, memory: int,
    following: Following | None = None,
) -> Tensor:  # fmt: skip
    """Predicted change of the target loss if a candidate had been left out of its step.

        influence_i = < a_{t+1}, s' - s_{t+1} >       s' = U(g^{-i}, s_t)
        renormalised   g^{-i} = (N g - w_i grad l_i) / (N - w_i n_i)
        fixed          g^{-i} = g - w_i grad l_i / N

    with g the step's mean gradient and N = sum_j w_j n_j; a step with nothing
    left has gradient 0. U is the rule of the forward step itself, clipping
    included, a_t the adjoint of s_t. With a `following` step, the inner product is

        < a_{t+2}, U(g_{t+1}, s') - s_{t+2} > + < c_{t+1}, theta' - theta_{t+1} >

    with c the part of a_{t+1} that is the loss's curvature, which is the same to first order.
    Positive: the example helps. Unit: the target's loss unit.

    Cost: one vectorized pass of per-example gradients (about 2 gradients), and
    2 n updates of the rule, O(n P), shared by the ranks. Memory: at most `memory`
    bytes, and one example's worth.

    Args:
        adjoint: of the state after the step, Q targets.
        mean: the step's gradient before clipping, shape (P,), `step.scale` included.
        losses, sizes: l_i and n_i, shape (n,).
        removal: "renormalised" or "fixed".

    Returns:
        influences, float64, shape (Q, n).
    """
    g, w, n = mean.double(), step.weights.to(mean.device).double(), sizes.double()
    total = nonzero((w * n).sum())
    outcome, cotangents = jump_of(rule, state, step, adjoint, following)
    with torch.no_grad():
        as_it_was = outcome(g)
        each = 8 * sum(t.numel() for t in as_it_was) * 4  # gradient, updates, temporaries
        found = [g.new_zeros(0, len(cotangents[0]))]
        for piece, gradients in example_gradients(
            task, state.theta, step, losses, max(1, memory // each)
        ):
            own = step.scale * w[piece, None] * gradients.double()
            left = (total - w[piece] * n[piece])[:, None]
            if removal == "fixed":
                without = g - own / total
            else:
                alone = left <= 1e-12 * total
                without = ((total * g - own) / left.where(~alone, 1.0)).where(~alone, 0.0)
            found.append(effect(vmap(outcome)(without), as_it_was, cotangents))
    return task.ranks.join(torch.cat(found).T, len(step.rows))
