"""Is what is trained what is simulated? One step's gradient and update, compared by parameter."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from curate.errors import SimulationError

GRADIENT = {torch.float64: 1e-5, torch.float32: 1e-3}
"""How far a gradient may be off, over its own norm, by the precision of its passes."""
HALF = 0.1
"""The same where passes are in a precision of 16 bits."""
UPDATE = 1e-3
"""How far a parameter's change may be off, over its own norm."""
SMALL = 0.01
"""Share of the whole gradient's norm below which a parameter's own does not count."""


class Real(NamedTuple):
    """One step as the optimizer took it.

    when: for messages. before: the parameters by name. gradients: as the optimizer found them;
    None where there was none. lrs, foreseen: learning rates of the groups.
    """

    when: str
    before: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor | None]
    lrs: Sequence[float]
    foreseen: Sequence[float]


def require_gradient(
    real: Real, simulated: Mapping[str, Tensor], passes: torch.dtype | None
) -> None:
    """Raise SimulationError if a step's gradients are not the simulated ones.

    passes: what passes compute in if not in the precision of the parameters.
    """
    names = [name for name in simulated if real.gradients.get(name) is not None]
    kind = next(iter(simulated.values())).dtype if passes is None else passes
    tolerance = GRADIENT.get(kind, HALF)
    found = {name: grad for name in names if (grad := real.gradients[name]) is not None}
    norms = [float(grad.norm()) for grad in found.values()]
    small = SMALL * math.hypot(*norms)
    limits = (tolerance * (norm + small) for norm in norms)
    if all(map(surely_within, limits, found.values(), (simulated[name] for name in found))):
        return
    pairs = {name: (_flat(grad), _flat(simulated[name])) for name, grad in found.items()}
    trained = torch.stack([one.square().sum() for one, _ in pairs.values()]).sum().sqrt()
    size = torch.stack([other.square().sum() for _, other in pairs.values()]).sum().sqrt()
    off = {
        name: float((one - other).norm() / (one.norm() + SMALL * trained))
        for name, (one, other) in pairs.items()
        if one.norm() + other.norm() > 0
    }
    worst = max(off, key=lambda name: off[name], default=None)
    if worst is None or off[worst] <= tolerance:
        return
    product = torch.stack([(one * other).sum() for one, other in pairs.values()]).sum()
    cosine = float(product / (trained * size).clamp(min=1e-300))
    if cosine > 0.9999:
        how = f"it is {float(trained / size):.4g} times as large"
    else:
        how = (
            f"it differs by {off[worst]:.2g} of its norm in {worst}, and its cosine is {cosine:.4f}"
        )
    raise SimulationError(
        f"{real.when}: the gradient that the loop trains by is not that of the objective: {how}. "
        "Tell look-ahead what the loop does: its loss as the objective, term by term and with its "
        "weights, and accumulate, scale, clip_norm, autocast; what else changes gradients or "
        "batches on the way cannot be followed."
    )


def require_update(real: Real, after: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise SimulationError if a step did not move the parameters as `expected`.

    Those that are not expected anywhere take no part in the simulation, and are to stay.
    """
    _require_rates(real)
    for name, before in real.before.items():
        rounding = 8 * torch.finfo(before.dtype).eps
        ends = after.get(name, before), expected.get(name, before)
        if surely_within(rounding * float(before.norm()), *ends):
            continue
        moved, foreseen = (end.double() - before for end in ends)
        size, off = float(foreseen.norm()), float((moved - foreseen).norm())
        if off <= max(UPDATE, rounding) * size + rounding * float(before.double().norm()):
            continue
        raise SimulationError(f"{real.when}: {_why(real, name, moved, expected)}")


def surely_within(limit: float, one: Tensor, other: Tensor) -> bool:
    """Whether the norm of a difference is within a limit, by a look in single precision.

    Copies in double precision cost ten times as much. Half of the limit leaves room for rounding:
    what is not surely within it is to be looked at again.
    """
    if one.dtype.itemsize < 4:
        return False
    return float((one - other).norm()) < limit / 2 < math.inf


def _require_rates(real: Real) -> None:
    for rate, foreseen in zip(real.lrs, real.foreseen, strict=True):
        if abs(rate - foreseen) > 1e-6 * max(abs(rate), abs(foreseen)):
            raise SimulationError(
                f"{real.when}: the update is made with a learning rate of {rate:.6g} where "
                f"{foreseen:.6g} was foreseen; give the scheduler that sets it, stepped once per "
                "optimizer step, or use a horizon of 1 and set the rate before the batch is drawn."
            )


def _why(real: Real, name: str, moved: Tensor, expected: Mapping[str, Tensor]) -> str:
    if name not in expected:
        return (
            f"the update moves {name}, which had not been trained while others were, and so "
            "counts as frozen; start with a new optimizer where parameters are unfrozen, and have "
            "one optimizer train all of them."
        )
    if real.gradients.get(name) is None:
        return (
            f"the loss of the batch does not use {name}, so the optimizer leaves it out, decay and "
            "momentum included, where look-ahead has all parameters take every step; freeze what "
            "is not used (requires_grad_(False)), or have every batch use it."
        )
    foreseen = expected[name].double() - real.before[name]
    apart = float((moved - foreseen).norm())
    return (
        f"the update moves {name} by {float(moved.norm()):.4g} where the optimizer's rule moves it "
        f"by {float(foreseen.norm()):.4g}, {apart:.2g} apart: a hook on the optimizer, or a step "
        "of its own, changes gradients or weights, which look-ahead cannot follow; leave it out, "
        "or train without look-ahead."
    )


def _flat(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.detach().double().reshape(-1)
