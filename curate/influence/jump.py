"""The exact jump: the step that an example is left out of, done again without it.

Adam's update is very nonlinear in the gradient, so most of what a derivative
gets wrong about a removal it gets wrong in the very step the example is removed
from. That step needs no derivative: the state after it without the example can
be computed. Only from there on is the change followed linearly (DESIGN 3.4).
"""

import torch
from torch import Tensor
from torch.func import vmap

from curate.influence.adjoint import Adjoint
from curate.rules import Rule, State
from curate.trajectory import Step, Task, example_gradients, nonzero


def exact_jump(
    task: Task, rule: Rule, state: State, step: Step, adjoint: Adjoint, *,
    mean: Tensor, losses: Tensor, sizes: Tensor, removal: str, memory: int,
) -> Tensor:  # fmt: skip
    """Predicted change of the target loss if a candidate had been left out of its step.

        influence_i = < adjoint of s_{t+1}, U(g^{-i}, s_t) - U(g, s_t) >
        renormalised   g^{-i} = (N g - w_i grad l_i) / (N - w_i n_i)
        fixed          g^{-i} = g - w_i grad l_i / N

    with g the step's mean gradient and N = sum_j w_j n_j; a step with nothing
    left has gradient 0. U is the rule of the forward step itself, clipping
    included, taken in float64: a removal moves a parameter by less than float32
    resolves. Positive: the example helps. Unit: the target's loss unit.

    Cost: one vectorised pass of per-example gradients (about 2 gradients), and
    n updates of the rule, O(n P). Memory: at most `memory` bytes, and one
    example's worth.

    Args:
        adjoint: of the state after the step, Q targets.
        mean: the step's gradient before clipping, shape (P,), `step.scale` included.
        losses, sizes: l_i and n_i, shape (n,).
        removal: "renormalised" or "fixed".

    Returns:
        influences, float64, shape (Q, n).
    """
    before = state.with_tensors(tuple(t.double() for t in state.tensors()))
    g, w, n = mean.double(), step.weights.to(mean.device).double(), sizes.double()
    total = nonzero((w * n).sum())

    def update(gradient: Tensor) -> tuple[Tensor, ...]:
        return rule.update(gradient, before, step.lrs).tensors()

    with torch.no_grad():
        after = update(g)
        each = 8 * sum(t.numel() for t in after) * 4  # gradient, update and its temporaries
        found = []
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
            moved = vmap(update)(without)
            change = g.new_zeros(len(own), len(adjoint[0]))
            for m, a, cotangent in zip(moved, after, adjoint, strict=True):
                change += (m - a) @ cotangent.double().T
            found.append(change)
    return torch.cat(found).T
