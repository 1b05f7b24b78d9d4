"""H a and slopes by ordinary gradients: a gradient at shifted weights, less one that is not.

    H a  =  (g(theta + e a) - g(theta)) / e               forward, one pass
    H a  =  (g(theta + e a) - g(theta - e a)) / (2 e)     central, two

How far to step is measured by how much the gradient changes, which has little to do with the
sizes of theta and a (DESIGN 3.2): e is such that |g(theta + e a) - g(theta)| is `FORWARD` of
|g|. Less, and rounding shows; more, and the third derivative does. From one step of training to
the next it hardly moves, so it is found once and followed. Slopes come from the same passes.
Now and then both ways are taken, and what is between them is an estimate of the error; where it
is too large, all are central from there on.

A difference is J a, with J the derivative of the gradient that training uses. The way back needs
J' a, the same wherever that gradient is the gradient of something. Backward hooks and
straight-through estimators can make it another; that is noticed, and refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curate.errors import ModelError
from curate.influence.point import Point
from curate.influence.slopes import Slopes
from curate.trajectory import Gradient

FORWARD, CENTRAL, DOUBLE = 3e-4, 1e-3, 1e-5
"""How much the gradient is to change, as a share: float32, one way and both ways; float64."""
WITHIN = 4.0
"""By what factor the change may miss that."""
TRIES = 8
FARTHEST = 0.1
"""How far to go at most, as a share of max(|theta|, 1); what has not changed by then does not."""
EVERY = 32
"""Steps between two that are checked."""
TOO_LARGE = 0.01
"""Estimated error of a forward difference, as a share, above which differences are central."""
LOPSIDED = 0.02
"""|a' J b - b' J a| as a share of what both should be, above which J is not symmetric; on top of
what the differences themselves are uncertain by."""

Moved = tuple[Tensor, Any]
"""By how much a gradient changes, shape (P,), and the slopes, shape (n,), on the way."""


class Product(NamedTuple):
    """H a, shape (P,); slopes d_i, shape (n,), float64; the error of H a, as a share of it."""

    bent: Tensor
    slopes: Tensor
    error: float


@dataclass
class _Course:
    """One target's products so far.

    stiffness: |H a| / |a| of the last, 0 before the first. taken: how many. error: of the last
    that was checked. central: whether all are, now.
    """

    stiffness: float = 0.0
    taken: int = 0
    error: float = 0.0
    central: bool = False


class Differences:
    """Takes differences along one trajectory, and remembers how far to step.

    Time: a gradient and slopes per product, twice that where it is central; a few more at the
    first. Memory: that of training, and two vectors.

    central: take all of them both ways.
    """

    def __init__(self, *, central: bool = False) -> None:
        self.slopes = Slopes()
        self._central = central
        self._symmetric = False
        self._kinked: bool | None = None
        self._courses: dict[int, _Course] = {}

    def saved(self) -> dict[str, Any]:
        """All that the next products depend on."""
        return {
            "courses": [asdict(self._courses[q]) for q in sorted(self._courses)],
            "slopes": self.slopes.saved(),
            "symmetric": self._symmetric,
            "kinked": self._kinked,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Resume from what was `saved`."""
        self._courses = {q: _Course(**values) for q, values in enumerate(saved["courses"])}
        self.slopes.restore(saved["slopes"])
        self._symmetric, self._kinked = saved["symmetric"], saved["kinked"]

    def products(self, point: Point, grad: Gradient, directions: Sequence[Tensor]) -> list[Product]:
        """The derivative of a step's mean gradient along Q directions, shape (P,), and slopes.

        `grad`: the step's gradient at the point. Directions are followed from step to step by
        their place, each whatever the others are.

        Raises:
            ModelError: the gradient that the model trains by is not one of any loss.
        """
        dtype = point.theta.dtype
        if dtype in (torch.float16, torch.bfloat16):
            raise ModelError(
                f"parameters in {str(dtype).removeprefix('torch.')} cannot be taken back "
                "through a step: they move by less than their own rounding; keep them in float32 "
                "and train under autocast, or use horizon 1."
            )
        if self._kinked is None:
            self._kinked = point.kinked
        origin = point if self._kinked else None
        return [
            self._product(
                _Ray(point, a, grad.mean, origin, self.slopes),
                self._courses.setdefault(q, _Course()),
            )
            for q, a in enumerate(directions)
        ]

    def _product(self, ray: "_Ray", course: _Course) -> Product:
        point, length = ray.point, _norm(ray.direction)
        if not (0 < length < math.inf and 0 < _norm(ray.base) < math.inf):
            _, slopes = self.slopes.take(point, [ray.direction])
            return Product(ray.direction * 0, slopes[0], 0.0)
        double = point.theta.dtype == torch.float64
        half = point.task.model.autocast is not None  # what was recorded: of another precision
        central = double or half or self._central or course.central
        checked = course.taken % EVERY == 0
        course.taken += 1
        wanted = DOUBLE if double else CENTRAL if central else FORWARD
        change = ray.across if central else ray.ahead
        reach, (moved, slopes) = ray.far_enough(change, wanted, course.stiffness)
        if checked and not central:
            forward, (moved, slopes) = moved, ray.across(reach)
            course.error = _apart(forward, moved)
            course.central = central = course.error > TOO_LARGE
        if checked and central:
            course.error = _apart(ray.across(3 * reach)[0].div_(3), moved)
        bent = moved.div_(reach)
        course.stiffness = _norm(bent) / length
        if checked and not self._symmetric and course.stiffness > 0:
            self._symmetric = True
            base = point.gradient().mean if half else ray.base
            _require_symmetry(replace(ray, base=base), bent, wanted, course.error)
        return Product(bent, slopes, course.error)


@dataclass(frozen=True)
class _Ray:
    """Gradients at theta + reach * direction.

    base: the one at theta. origin: on whose pieces to stay, see `Point`. slopes: what takes them
    along the direction; None if they are not wanted.
    """

    point: Point
    direction: Tensor
    base: Tensor
    origin: Point | None
    slopes: Slopes | None = None

    def at(self, reach: float) -> Moved:
        """The mean gradient, and the slopes."""
        there = self.point.moved(self.direction, reach, self.origin)
        if self.slopes is None:
            return there.gradient().mean, 0.0
        grad, slopes = self.slopes.take(there, [self.direction])
        return grad.mean, slopes[0]

    def ahead(self, reach: float) -> Moved:
        """g(theta + e a) - g(theta), and the slopes at the former."""
        far, slopes = self.at(reach)
        return far - self.base, slopes

    def across(self, reach: float) -> Moved:
        """(g(theta + e a) - g(theta - e a)) / 2, and the mean of the slopes at both."""
        far, up = self.at(reach)
        near, down = self.at(-reach)
        return (far - near).div_(2), (up + down) / 2

    def far_enough(
        self, change: Callable[[float], Moved], wanted: float, stiffness: float = 0.0
    ) -> tuple[float, Moved]:
        """How far the gradient has changed as `wanted`, as a share of its size, and by what.

        Args:
            change: `ahead` or `across`. stiffness: |J a| / |a|, where it is known about.
        """
        theta, size, length = self.point.theta, _norm(self.base), _norm(self.direction)
        place = max(1.0, _norm(theta))
        farthest, too_far = FARTHEST * place / length, math.inf
        reach = min(wanted * (size / stiffness if stiffness > 0 else place) / length, farthest)
        nearest = math.inf
        for _ in range(TRIES):
            moved = change(reach)
            share = _norm(moved[0]) / size
            if not math.isfinite(share):
                return reach, moved
            factor = wanted / max(share, torch.finfo(theta.dtype).eps)
            if (miss := abs(math.log(factor))) < nearest:
                nearest, best = miss, (reach, moved)
            if miss <= math.log(WITHIN) or (factor > 1 and reach == farthest):
                break
            too_far = min(too_far, reach) if factor < 1 else too_far
            further = min(reach * min(max(factor, 1e-4), 1e4), farthest)
            reach = further if further < too_far else math.sqrt(reach * too_far)
        return best


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector))


def _apart(vector: Tensor, better: Tensor) -> float:
    """How far one is from the other, as a share of it."""
    norm = _norm(better)
    return _norm(vector - better) / norm if norm > 0 else 0.0


def _require_symmetry(ray: _Ray, bent: Tensor, wanted: float, error: float) -> None:
    """If J is symmetric, b' J a is a' J b; with b = J a, parameter by parameter in and out.

    What changes a gradient somewhere on its way is seen where b and a lie on its two sides.

    Args:
        ray: along a. bent: J a, shape (P,), and its `error`, as a share of it.
    """
    parts = ray.point.task.model.unpack(bent).values()
    other = torch.cat([math.cos(2.4 * k) * p.reshape(-1) for k, p in enumerate(parts)])
    along_b = replace(ray, direction=other, slopes=None)
    reach, (moved, _) = along_b.far_enough(along_b.ahead, wanted)
    error += _apart(along_b.ahead(3 * reach)[0].div_(3), moved)
    mine = float(torch.dot(other, bent))
    theirs = float(torch.dot(ray.direction, moved.div_(reach)))
    room = (LOPSIDED + 10 * error) * _norm(other) * _norm(bent)
    if abs(mine - theirs) > room:
        raise ModelError(
            "the gradient that this model trains by is not the gradient of any loss (a "
            "backward hook, a straight-through estimator or a custom function changes it on "
            f"its way: a' J b is {theirs:.3g} where b' J a is {mine:.3g}), so no score can be "
            "taken back through a step; use horizon 1, or take that out."
        )
