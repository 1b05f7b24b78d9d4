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
straight-through estimators can make it another; that is found out, and refused.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curate.errors import ModelError
from curate.influence.kinks import Near
from curate.influence.slopes import Slopes, kept
from curate.trajectory import Gradient, Step, Task, Watch, gradient

FORWARD, CENTRAL, DOUBLE = 3e-4, 1e-3, 1e-5
"""How much the gradient is to change, as a share: float32, one way and both ways; float64."""
WITHIN = 4.0
"""By what factor the change may miss that."""
TRIES = 8
FARTHEST = 0.1
"""Of |theta|, or of 1 if that is more: a gradient that has not changed by then does not."""
EVERY = 32
"""Steps between two that are checked."""
TOO_LARGE = 0.01
"""Estimated error of a forward difference, as a share, above which differences are central."""
LOPSIDED = 0.02
"""|a' J b - b' J a| as a share of what both should be, above which J is not symmetric; on top of
what the differences themselves are uncertain by."""


class Product(NamedTuple):
    """H a, shape (P,); slopes d_i, shape (n,), float64; the error of H a, as a share of it."""

    bent: Tensor
    slopes: Tensor
    error: float


@dataclass
class _Course:
    """What is remembered of one target's products.

    stiffness: |H a| / |a| as seen last, 0 if not yet. taken: how many. error: of the last that
    was checked. central: whether all are, now.
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

    def saved(self) -> list[dict[str, Any]]:
        """What the next products depend on."""
        return [asdict(self._courses[q]) for q in sorted(self._courses)]

    def restore(self, saved: Sequence[dict[str, Any]]) -> None:
        """Go on from what was `saved`."""
        self._courses = {q: _Course(**values) for q, values in enumerate(saved)}

    def products(
        self, task: Task, theta: Tensor, step: Step, grad: Gradient, directions: Sequence[Tensor]
    ) -> list[Product]:
        """The derivative of a step's mean gradient along Q directions, shape (P,), and slopes.

        `grad`: the step's gradient at theta. Each direction, in its place, has a course of its
        own, the same whatever the others are.

        Raises:
            ModelError: the gradient that the model trains by is not one of any loss.
        """
        if theta.dtype in (torch.float16, torch.bfloat16):
            raise ModelError(
                f"parameters in {str(theta.dtype).removeprefix('torch.')} cannot be taken back "
                "through a step: they move by less than their own rounding; keep them in float32 "
                "and train under autocast, or use horizon 1."
            )
        near = Near(task, theta, step)
        if self._kinked is None:
            self._kinked = near.kinked
        kept_to = near if self._kinked else None
        courses = [self._courses.setdefault(q, _Course()) for q in range(len(directions))]
        return [
            self._product(task, theta, step, grad, a, course, kept_to)
            for a, course in zip(directions, courses, strict=True)
        ]

    def _product(
        self, task: Task, theta: Tensor, step: Step, grad: Gradient, direction: Tensor,
        course: _Course, near: Near | None,
    ) -> Product:  # fmt: skip
        length = float(torch.linalg.vector_norm(direction))
        size = float(torch.linalg.vector_norm(grad.mean))
        if not (0 < length < math.inf and 0 < size < math.inf):
            _, found = self.slopes.take(task, theta, step, [direction])
            return Product(direction * 0, found[0], 0.0)
        double = theta.dtype == torch.float64
        half = task.model.autocast is not None  # what was recorded is then of another precision
        central = double or half or self._central or course.central
        checked = course.taken % EVERY == 0
        course.taken += 1
        wanted = DOUBLE if double else CENTRAL if central else FORWARD
        there = partial(self._shifted, task, theta, step, direction, near)
        change = partial(_across, there) if central else partial(_ahead, there, grad.mean)
        reach, (moved, slopes) = _far_enough(change, size, theta, length, wanted, course.stiffness)
        if checked and not central:
            forward, (moved, slopes) = moved, _across(there, reach)
            course.error = _apart(forward, moved)
            course.central = central = course.error > TOO_LARGE
        if checked and central:
            course.error = _apart(_across(there, 3 * reach)[0].div_(3), moved)
        bent = moved.div_(reach)
        course.stiffness = float(torch.linalg.vector_norm(bent)) / length
        if checked and not self._symmetric and course.stiffness > 0:
            self._symmetric = True
            base = gradient(task, theta, step, exactly=True).mean if half else grad.mean
            watch = partial(kept, near) if near else None
            _require_symmetry(
                task, theta, step, base, direction, bent, wanted, course.error, watch
            )  # fmt: skip
        return Product(bent, slopes, course.error)

    def _shifted(
        self, task: Task, theta: Tensor, step: Step, direction: Tensor, near: Near | None,
        reach: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The mean gradient and the slopes at theta + reach * direction."""
        there = torch.add(theta, direction, alpha=reach)
        grad, slopes = self.slopes.take(task, there, step, [direction], near=near)
        return grad.mean, slopes[0]


Moved = tuple[Tensor, Any]
"""By how much a gradient changes, shape (P,), and what else is found there."""


def _ahead(there: Callable[[float], Moved], base: Tensor, reach: float) -> Moved:
    """g(theta + e a) - g(theta), and the slopes at the former."""
    far, slopes = there(reach)
    return far - base, slopes


def _across(there: Callable[[float], Moved], reach: float) -> Moved:
    """(g(theta + e a) - g(theta - e a)) / 2, and the mean of the slopes at both."""
    far, up = there(reach)
    near, down = there(-reach)
    return (far - near).div_(2), (up + down) / 2


def _apart(found: Tensor, better: Tensor) -> float:
    """How far one is from the other, as a share of it."""
    norm = float(torch.linalg.vector_norm(better))
    return float(torch.linalg.vector_norm(found - better)) / norm if norm > 0 else 0.0


def _far_enough(
    change: Callable[[float], Moved], size: float, theta: Tensor, length: float, wanted: float,
    stiffness: float = 0.0,
) -> tuple[float, Moved]:  # fmt: skip
    """How far along a direction the gradient has changed as `wanted`, and what is found there.

    Args:
        change: of the gradient, so many directions from theta. size: of the gradient at theta.
        length: of the direction. stiffness: |J a| / |a|, where it is known about.
    """
    place = max(1.0, float(torch.linalg.vector_norm(theta)))
    farthest, too_far = FARTHEST * place / length, math.inf
    reach = min(wanted * (size / stiffness if stiffness > 0 else place) / length, farthest)
    nearest = math.inf
    for _ in range(TRIES):
        found = change(reach)
        share = float(torch.linalg.vector_norm(found[0])) / size
        if not math.isfinite(share):
            return reach, found
        factor = wanted / max(share, torch.finfo(theta.dtype).eps)
        if (miss := abs(math.log(factor))) < nearest:
            nearest, best = miss, (reach, found)
        if miss <= math.log(WITHIN) or (factor > 1 and reach == farthest):
            break
        too_far = min(too_far, reach) if factor < 1 else too_far
        further = min(reach * min(max(factor, 1e-4), 1e4), farthest)
        reach = further if further < too_far else math.sqrt(reach * too_far)
    return best


def _require_symmetry(
    task: Task, theta: Tensor, step: Step, base: Tensor, direction: Tensor, bent: Tensor,
    wanted: float, error: float, watch: Watch | None,
) -> None:  # fmt: skip
    """If J is symmetric, b' J a is a' J b; with b = J a, parameter by parameter in and out.

    What changes a gradient somewhere on its way is seen where b and a lie on its two sides.
    """
    parts = task.model.unpack(bent).values()
    other = torch.cat([math.cos(2.4 * k) * p.reshape(-1) for k, p in enumerate(parts)])
    length = float(torch.linalg.vector_norm(other))

    def there(reach: float) -> Moved:
        there = torch.add(theta, other, alpha=reach)
        return gradient(task, there, step, exactly=True, watch=watch).mean, 0.0

    change = partial(_ahead, there, base)
    size = float(torch.linalg.vector_norm(base))
    reach, (moved, _) = _far_enough(change, size, theta, length, wanted)
    error += _apart(change(3 * reach)[0].div_(3), moved)
    mine = float(torch.dot(other, bent))
    theirs = float(torch.dot(direction, moved.div_(reach)))
    room = (LOPSIDED + 10 * error) * length * float(torch.linalg.vector_norm(bent))
    if abs(mine - theirs) > room:
        raise ModelError(
            "the gradient that this model trains by is not the gradient of any loss (a "
            "backward hook, a straight-through estimator or a custom function changes it on "
            f"its way: a' J b is {theirs:.3g} where b' J a is {mine:.3g}), so no score can be "
            "taken back through a step; use horizon 1, or take that out."
        )
