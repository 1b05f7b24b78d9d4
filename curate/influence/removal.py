"""From derivatives to influences: what leaving examples out of their batch does."""

from dataclasses import dataclass, replace

from torch import Tensor

from curate.rules import Rule
from curate.trajectory import Step

REMOVALS = ("renormalised", "fixed")


def leave_out(step: Step, position: int, sizes: Tensor, removal: str) -> Step:
    """The step with the candidate at a position left out, in the sense of `influence`.

    It keeps its place with weight 0, so that dropout falls for the others as it did.
    `fixed` removal keeps the denominator by scaling the mean of the others.

    Args:
        sizes: n_i, shape (n,).
    """
    weights = step.weights.clone()
    weights[position] = 0
    if removal == "renormalised":
        return step.reweight(weights)
    terms = step.weights.double() * sizes.cpu().double()
    total = float(terms.sum())
    share = 1 - float(terms[position]) / total if total else 1.0
    return replace(step, weights=weights, scale=step.scale * share)


def influence(derivatives: Tensor, weights: Tensor, sizes: Tensor, removal: str) -> Tensor:
    """Predicted change of the target loss if a candidate had been left out of its step.

    Positive: the example helps. Unit: the target's loss unit.

    With d_i = <grad l_i, a_g>, weights w_i, terms n_i, N = sum_j w_j n_j and
    d = sum_j w_j d_j / N, the derivative of the step's mean gradient along a_g is

        renormalised   influence_i = -(w_i d_i - w_i n_i d) / (N - w_i n_i)
        fixed          influence_i = -w_i d_i / N

    Renormalised is what a shorter batch does: the mean runs over what is left.
    Fixed keeps the denominator, as zeroing an example's loss would. A step
    with nothing left gets gradient 0, and the two agree.
    DESIGN 3.3; the plain form is eq. 5 of arXiv:2605.18814.

    Args:
        derivatives: d_i, shape (Q, n).
        weights, sizes: w_i and n_i, shape (n,).
        removal: "renormalised" or "fixed".

    Returns:
        influences, float64, shape (Q, n).
    """
    if removal not in REMOVALS:
        raise ValueError(f"removal must be one of {REMOVALS} but got {removal!r}")
    d, w, n = derivatives.double(), weights.to(derivatives.device).double(), sizes.double()
    total = (w * n).sum()
    fixed = -w * d / total.where(total != 0, 1.0)
    if removal == "fixed":
        return fixed
    left = total - w * n
    mean = (w * d).sum(dim=1, keepdim=True) / total.where(total != 0, 1.0)
    alone = left <= 1e-12 * total
    return fixed.where(alone, -(w * d - w * n * mean) / left.where(~alone, 1.0))


def reweighting(derivatives: Tensor, sizes: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Predicted change of the target loss if a step's weights had been others, shape (Q,).

    With a = after and b = before, sum_i a_i d_i / sum_i a_i n_i - sum_i b_i d_i / sum_i b_i n_i:
    first order in the step's mean gradient, exact in the weights. For one
    example weighed 0 it is the renormalised influence; for many it is not their
    sum, since the mean runs over fewer and fewer.

    Args:
        derivatives: d_i, shape (Q, n). sizes: n_i, shape (n,).
        before, after: weights, shape (n,).
    """
    d, n = derivatives.double(), sizes.double()

    def mean(weights: Tensor) -> Tensor:
        w = weights.to(d)
        total = (w * n).sum()
        return (w * d).sum(dim=1) / total.where(total != 0, 1.0)

    return mean(after) - mean(before)


@dataclass(frozen=True)
class Scoring:
    """How candidates are scored.

    removal: what leaving an example out does to its batch's mean, see `influence`.
    jump_bytes: None for influences linear in the removal; otherwise they are those of
        `exact_jump`, which takes this much memory for its gradients.
    mistaken_rule: score as if this had been the optimizer, to see what the mistake costs;
        the recorded run stays what it was.
    """

    removal: str = "renormalised"
    jump_bytes: int | None = None
    mistaken_rule: Rule | None = None

    def __post_init__(self) -> None:
        if self.removal not in REMOVALS:
            raise ValueError(f"removal must be one of {REMOVALS} but got {self.removal!r}")
