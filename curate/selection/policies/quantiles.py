"""Quantiles of the normal distribution, of many numbers at once."""

import numpy as np

from curate.selection import Array

MIDDLE = (
    (
        *(2.509080928730122672700e3, 3.343057558358812810500e4, 6.726577092700870085300e4),
        *(4.592195393154987145700e4, 1.373169376550946112500e4, 1.971590950306551442700e3),
        *(1.331416678917843774500e2, 3.387132872796366608000e0),
    ),
    (
        *(5.226495278852854561000e3, 2.872908573572194267400e4, 3.930789580009271061000e4),
        *(2.121379430158659586700e4, 5.394196021424751107700e3, 6.871870074920579083000e2),
        *(4.231333070160091125200e1, 1.0),
    ),
)
TAIL = (
    (
        *(7.745450142783414076400e-4, 2.272384498926918458330e-2, 2.417807251774506117700e-1),
        *(1.270458252452368382580e0, 3.647848324763204605040e0, 5.769497221460691405500e0),
        *(4.630337846156545295900e0, 1.423437110749683577340e0),
    ),
    (
        *(1.050750071644416843240e-9, 5.475938084995344946000e-4, 1.519866656361645719660e-2),
        *(1.481039764274800745900e-1, 6.897673349851000045500e-1, 1.676384830183803849400e0),
        *(2.053191626637758821870e0, 1.0),
    ),
)
FAR = (
    (
        *(2.010334399292288132650e-7, 2.711555568743487578150e-5, 1.242660947388078438600e-3),
        *(2.653218952657612309300e-2, 2.965605718285048912300e-1, 1.784826539917291335800e0),
        *(5.463784911164114369900e0, 6.657904643501103777200e0),
    ),
    (
        *(2.044263103389939785640e-15, 1.421511758316445888700e-7, 1.846318317510054681800e-5),
        *(7.868691311456132591000e-4, 1.487536129085061485250e-2, 1.369298809227358053100e-1),
        *(5.998322065558879376900e-1, 1.0),
    ),
)
"""Numerators and denominators around the median, in the tails, and far out in them."""


def normal_quantiles(shares: Array) -> Array:
    """Numbers below which these shares of a standard normal distribution lie, to 16 digits.

    Wichura, "Algorithm AS241: The percentage points of the normal distribution", Applied
    Statistics 37 (1988), as in Python's `statistics`.

    Args:
        shares: above 0 and below 1, shape (n,).
    """
    q = shares - 0.5
    found = q * _ratio(MIDDLE, 0.180625 - np.minimum(q * q, 0.180625))
    out = np.abs(q) > 0.425
    r = np.sqrt(-np.log(np.minimum(shares[out], 1 - shares[out])))
    tails = np.where(r <= 5, _ratio(TAIL, r - 1.6), _ratio(FAR, r - 5))
    found[out] = np.copysign(tails, q[out])
    return found


def _ratio(polynomials: tuple[tuple[float, ...], ...], r: Array) -> Array:
    above, below = (np.polyval(np.array(polynomial), r) for polynomial in polynomials)
    ratio: Array = above / below
    return ratio
