"""From a derivative to an influence: what leaving an example out of its batch does."""

from torch import Tensor

REMOVALS = ("renormalised", "fixed")


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
