"""Every row's slope along a direction, from one ordinary backward pass.

With L = sum_i w_i l_i and a direction a in the parameters, wanted are d_i = <grad l_i, a>. Every
operation that uses a parameter has a share in them (`tangents`), and added up these are w_i d_i
(DESIGN 3.2): about a third of a gradient more. That nothing was missed is checked: by
parameter, sum_i w_i d_i has to be <grad L, a>, which is known; and once, with other
weights, that each row's is its own. Where it is not, the rows' gradients by those parameters are
taken one by one, slow and sure.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curate.datasets import owners_of
from curate.influence.point import Point
from curate.influence.tangents import Parts, Watcher
from curate.models import FlatModel
from curate.runtime.ranks import everywhere
from curate.trajectory import Gradient, Step, forward, terms

EVERY = 32
"""Passes between two whose slopes are checked parameter by parameter."""


@dataclass
class Seen:
    """A pass over a step, and what slopes are taken from.

    grad: the step's gradient. watchers: one for each of this rank's chunks. by: the parameters
    that they watched. parts: of the gradient of this rank's rows, where it is to be compared.
    """

    point: Point
    grad: Gradient
    watchers: list[Watcher]
    by: list[str]
    parts: list[Tensor] | None

    def local(self, count: int, singly: set[str]) -> Tensor:
        """d_i of this rank's rows along `count` directions, but for some parameters' part in them.

        Shape (count, rows), float64.
        """
        theta = self.grad.mean
        weights = self.point.step.weights.to(theta.device).double()
        slopes = [theta.new_zeros(count, 0, dtype=torch.float64)]
        for chunk, watcher in zip(
            self.point.task.chunks(self.point.step), self.watchers, strict=True
        ):
            shares = [x for n, xs in watcher.shares.items() if not n & singly for x in xs]
            none = theta.new_zeros(count, chunk.stop - chunk.start)
            total = torch.stack([none, *shares]).sum(0, dtype=torch.float64)
            slopes.append(total / weights[chunk])
        return torch.cat(slopes, dim=1)


class Slopes:
    """Takes slopes along one trajectory, and remembers which have to be taken row by row.

    Memory of a pass: that of training. Time: about a third more than a gradient, per direction.
    """

    def __init__(self) -> None:
        self._singly: set[str] = set()
        self._attributed = False
        self._passes = 0
        self._slack = 1.0

    def saved(self) -> dict[str, Any]:
        """All that the next slopes depend on."""
        return {
            "singly": sorted(self._singly),
            "attributed": self._attributed,
            "passes": self._passes,
            "slack": self._slack,
        }

    def restore(self, saved: dict[str, Any]) -> None:
        """Resume from what was `saved`."""
        self._singly, self._attributed = {*saved["singly"]}, saved["attributed"]
        self._passes, self._slack = saved["passes"], saved["slack"]

    def take(
        self, point: Point, directions: Sequence[Tensor], *, thorough: bool = False
    ) -> tuple[Gradient, Tensor]:
        """The step's gradient, and d_i = <grad l_i, a> along Q directions, shape (P,).

        Slopes: shape (Q, n), float64, in the unit of l_i per unit of direction. Their sum is
        checked every time; now and then, where it is off, or if `thorough`, by parameter.
        """
        task, step = point.task, point.step
        if not (step.weights > 0).all():  # what weighs nothing sends nothing back
            _, slopes = self.take(point.reweighted(torch.ones_like(step.weights)), directions)
            return point.gradient(), slopes
        parts = [task.model.unpack(a) for a in directions]
        seen = self._pass(point, parts, thorough=self._due() or thorough)
        return seen.grad, self._along(seen, directions, parts)

    def see(self, point: Point) -> Seen | None:
        """A pass from which slopes can be taken once it is known along what (`along`).

        Its memory stays taken until then. None where that is not to be had: of several chunks, or
        with weights of 0.
        """
        whole = len(point.task.chunks(point.step)) < 2
        if not (everywhere(point.task.ranks, whole) and (point.step.weights > 0).all()):
            return None
        return self._pass(point, None, thorough=self._due())

    def along(self, seen: Seen, directions: Sequence[Tensor]) -> Tensor:
        """Slopes along Q directions at a point that was seen, once, as `take` gives them.

        Where activations are computed again, which keeps nothing, that takes another pass.
        """
        kept = all(watcher.kept_all for watcher in seen.watchers)
        if not everywhere(seen.point.task.ranks, kept):
            return self.take(seen.point, directions)[1]
        parts = [seen.point.task.model.unpack(a) for a in directions]
        for watcher in seen.watchers:
            watcher.take(parts)
        return self._along(seen, directions, parts)

    def _along(self, seen: Seen, directions: Sequence[Tensor], parts: Sequence[Parts]) -> Tensor:
        point, task = seen.point, seen.point.task
        if seen.parts is not None:
            expected = _by_parameter(seen.parts, seen.by, parts).cpu().numpy()
            self._distrust(_astray(seen.watchers, seen.by, expected, _room(task.model)))
        local = seen.local(len(parts), self._singly)
        if not self._attributed and len(point.step.rows) > 1:
            self._attributed = True
            self._check_rows(point, parts, local)
        if self._singly:
            local = local + _one_by_one(point, parts, sorted(self._singly))
        slopes = task.join(local, point.step)
        off = _off(_room(task.model), point.step, seen.grad, directions, slopes)
        if seen.parts is not None and math.isfinite(off):  # by parameter all was right: rounding
            self._slack = max(self._slack, 2 * off)
        elif off > self._slack:
            _, slopes = self.take(point, directions, thorough=True)
        return slopes

    def _due(self) -> bool:
        """Whether a pass is to be checked by parameter."""
        self._passes += 1
        return self._passes % EVERY == 1

    def _pass(self, point: Point, directions: Sequence[Parts] | None, *, thorough: bool) -> Seen:
        """A pass, watched along these directions, or for some that come later."""
        model = point.task.model
        members = {n: p for n, p in model.members().items() if n not in self._singly}
        watchers, parts = list[Watcher](), list[Tensor]()
        last = point.task.chunks(point.step)[-1:]

        @contextmanager
        def watch(chunk: slice) -> Iterator[Callable[[Tensor], None]]:
            owners = owners_of(point.task.examples, point.step.rows[chunk], model.device)
            watchers.append(Watcher(members, chunk.stop - chunk.start, directions, owners))
            with point.staying(chunk) as back, watchers[-1]:
                yield back
            if thorough and [chunk] == last:
                parts.extend(_gradients(members.values()))

        grad = point.gradient(watch)
        if thorough and not last:
            parts.extend(torch.zeros_like(p) for p in members.values())
        return Seen(point, grad, watchers, [*members], parts if thorough else None)

    def _check_rows(self, point: Point, parts: Sequence[Parts], slopes: Tensor) -> None:
        """See that each row's slope is its own: with other weights it has to be the same."""
        task, weights = point.task, point.step.weights
        golden = torch.arange(len(weights), dtype=torch.float64) * 0.618034
        other = point.reweighted(weights * (0.5 + golden.frac()).to(weights.dtype))
        again = self._pass(other, parts, thorough=False).local(len(parts), self._singly)
        most = 1e-6 if point.theta.dtype == torch.float64 else 2e-2
        apart = torch.linalg.vector_norm(again - slopes) > most * torch.linalg.vector_norm(slopes)
        if not everywhere(task.ranks, not bool(apart)):
            why = "rows cannot be told apart in its output"
            self._distrust(dict.fromkeys(task.model.names, why))
            slopes.zero_()

    def _distrust(self, astray: Mapping[str, str]) -> None:
        """Take the slopes by these parameters row by row from now on, and warn of it."""
        if not astray:
            return
        self._singly |= astray.keys()
        name = min(astray)
        more = f" and {len(astray) - 1} more" if len(astray) > 1 else ""
        warnings.warn(
            f"no formula for how parameter {name}{more} moves each row ({astray[name]}): its part "
            "of every score takes a backward pass per row.",
            RuntimeWarning,
            stacklevel=2,
        )


def _room(model: FlatModel) -> tuple[float, float]:
    """How far sums may be off by rounding: as shares of all slopes' sizes, and of |g| |a|."""
    if model.in_tf32:
        return 0.1, 1e-3
    eps = torch.finfo(model.dtype).eps
    return 3e4 * eps, 64 * eps


def _off(
    room: tuple[float, float], step: Step, grad: Gradient, along: Sequence[Tensor], slopes: Tensor
) -> float:
    """How far sum_i w_i d_i is from <sum_i w_i grad l_i, a>, as a share of the room that there is.

    Along the worst of the directions a.
    """
    if step.scale == 0:  # then there is no gradient to compare with
        return 0.0
    by_slopes, by_lengths = room
    shares = step.weights.to(slopes) * slopes
    products = torch.stack([torch.dot(grad.mean, a) for a in along])
    lengths = torch.stack(torch._foreach_norm(list(along)))
    lengths = lengths * torch.linalg.vector_norm(grad.mean)
    factor = terms(step, grad.sizes) / step.scale
    right, lengths = torch.stack([products, lengths]).double() * factor
    most = by_slopes * shares.abs().sum(dim=1) + by_lengths * lengths.abs()
    off = (shares.sum(dim=1) - right).abs() / most.clamp_min(1e-300)
    return float(off.nan_to_num(nan=0.0, posinf=math.inf).max())


def _gradients(members: Iterable[nn.Parameter]) -> list[Tensor]:
    """What a backward pass has left in parameters; 0 where it has left nothing."""
    return [
        torch.zeros_like(p.data) if p.grad is None else p.grad.detach().to_dense() for p in members
    ]


def _by_parameter(grads: list[Tensor], names: Sequence[str], directions: Sequence[Parts]) -> Tensor:
    """By parameter: <grad L, a>, and the product of the two lengths, shape (2, Q, parameters)."""
    if not grads:
        return torch.zeros(2, len(directions), 0, dtype=torch.float64)
    sizes = torch.stack(torch._foreach_norm(grads))
    products = []
    for direction in directions:
        along = [direction[name] for name in names]
        dots = [torch.dot(g.reshape(-1), a.reshape(-1)) for g, a in zip(grads, along, strict=True)]
        lengths = sizes * torch.stack(torch._foreach_norm(along))
        products.append(torch.stack([torch.stack(dots), lengths]))
    return torch.stack(products, dim=1).double()


def _astray(
    watchers: Sequence[Watcher],
    names: Sequence[str],
    expected: NDArray[np.float64],
    room: tuple[float, float],
) -> dict[str, str]:
    """Parameters whose slopes do not add up to what they have to, and why as far as is known.

    expected: see `_by_parameter`. Where an operation uses several, they are taken together.
    """
    astray: dict[str, str] = {}
    group = {name: {name} for name in names}
    sums = {name: np.zeros((2, expected.shape[1])) for name in names}
    for watcher in watchers:
        astray |= watcher.missed
        for together in watcher.shares:
            joined = set[str]().union(*(group[name] for name in together))
            group |= dict.fromkeys(joined, joined)
        shares = [(min(together), x) for together, xs in watcher.shares.items() for x in xs]
        if shares:
            stacked = torch.stack([x for _, x in shares]).double()
            both = torch.stack([stacked.sum(dim=2), stacked.abs().sum(dim=2)], dim=1)
            for (name, _), total in zip(shares, both.cpu().numpy(), strict=True):
                sums[name] += total
    for joined in {id(members): members for members in group.values()}.values():
        total = np.sum([sums[name] for name in joined], axis=0)
        right = np.sum([expected[:, :, names.index(name)] for name in joined], axis=0)
        most = room[0] * total[1] + room[1] * right[1]
        if np.isfinite(right).all() and not np.all(np.abs(total[0] - right[0]) <= most):
            for name in sorted(joined):
                astray.setdefault(name, "it is used where nobody sees it")
    return astray


def _one_by_one(point: Point, parts: Sequence[Parts], names: Sequence[str]) -> Tensor:
    """Slopes by some parameters, from a backward pass per row; this rank's rows, (Q, n)."""
    task, theta = point.task, point.theta
    slopes = [theta.new_zeros(len(parts), 0, dtype=torch.float64)]
    members = task.model.members()
    with task.model.at(theta, training=True) as module:
        for chunk in task.chunks(point.step):
            losses = forward(task, module, point.step, chunk, exactly=True).losses
            for i in range(len(losses)):
                for p in members.values():
                    p.grad = None
                losses[i].backward(retain_graph=i + 1 < len(losses))
                grads = _gradients(members[name] for name in names)
                products = _by_parameter(grads, names, parts)
                slopes.append(products[0].sum(dim=1, keepdim=True))
    return torch.cat(slopes, dim=1)
