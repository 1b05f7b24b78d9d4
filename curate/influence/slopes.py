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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curate.influence.point import Point
from curate.influence.tangents import Parts, Watcher
from curate.models import FlatModel
from curate.runtime.ranks import everywhere
from curate.trajectory import Gradient, Step, forward, terms

EVERY = 32
"""Passes between two whose slopes are checked parameter by parameter."""


class Slopes:
    """Takes slopes along one trajectory, and remembers which have to be taken row by row.

    Memory of a pass: that of training. Time: about a third more than a gradient, per direction.
    """

    def __init__(self) -> None:
        self._singly: set[str] = set()
        self._attributed = False
        self._passes = 0
        self._slack = 1.0

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
        thorough |= self._passes % EVERY == 0
        self._passes += 1
        grad, local = self._pass(point, parts, thorough=thorough)
        if not self._attributed and len(step.rows) > 1:
            self._attributed = True
            self._check_rows(point, parts, local)
        if self._singly:
            local = local + _one_by_one(point, parts, sorted(self._singly))
        slopes = task.join(local, step)
        off = _off(_room(task.model), step, grad, directions, slopes)
        if thorough and math.isfinite(off):  # by parameter all was right: that is rounding, here
            self._slack = max(self._slack, 2 * off)
        elif off > self._slack:
            return self.take(point, directions, thorough=True)
        return grad, slopes

    def _pass(
        self, point: Point, parts: Sequence[Parts], *, thorough: bool
    ) -> tuple[Gradient, Tensor]:
        """The gradient, and this rank's slopes by what is seen in passing, (Q, its rows)."""
        task, theta = point.task, point.theta
        members = {n: p for n, p in task.model.members().items() if n not in self._singly}
        watchers: list[Watcher] = []
        expected = np.zeros((2, len(parts), len(members)))
        chunks = task.chunks(point.step)

        @contextmanager
        def watch(chunk: slice) -> Iterator[Callable[[Tensor], None]]:
            watchers.append(Watcher(members, parts, chunk.stop - chunk.start))
            with point.staying(chunk) as back, watchers[-1]:
                yield back
            if thorough and chunk == chunks[-1]:
                expected[:] = _by_parameter(members, parts).cpu().numpy()

        grad = point.gradient(watch)
        if thorough:
            self._distrust(_astray(watchers, [*members], expected, _room(task.model)))
        weights = point.step.weights.to(theta.device).double()
        slopes = [theta.new_zeros(len(parts), 0, dtype=torch.float64)]
        for chunk, watcher in zip(chunks, watchers, strict=True):
            shares = [x for n, xs in watcher.shares.items() if not n & self._singly for x in xs]
            none = theta.new_zeros(len(parts), chunk.stop - chunk.start)
            slopes.append(torch.stack([none, *shares]).sum(0, dtype=torch.float64) / weights[chunk])
        return grad, torch.cat(slopes, dim=1)

    def _check_rows(self, point: Point, parts: Sequence[Parts], slopes: Tensor) -> None:
        """See that each row's slope is its own: with other weights it has to be the same."""
        task, weights = point.task, point.step.weights
        golden = torch.arange(len(weights), dtype=torch.float64) * 0.618034
        other = point.reweighted(weights * (0.5 + golden.frac()).to(weights.dtype))
        _, again = self._pass(other, parts, thorough=False)
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


def _by_parameter(members: Parts, parts: Sequence[Parts]) -> Tensor:
    """By parameter: <grad L, a>, and the product of the two lengths, shape (2, Q, parameters)."""
    if not members:
        return torch.zeros(2, len(parts), 0, dtype=torch.float64)
    grads = [
        torch.zeros_like(p.data) if p.grad is None else p.grad.detach().to_dense()
        for p in members.values()
    ]
    sizes = torch.stack(torch._foreach_norm(grads))
    products = []
    for direction in parts:
        along = [direction[name] for name in members]
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
                products = _by_parameter({name: members[name] for name in names}, parts)
                slopes.append(products[0].sum(dim=1, keepdim=True))
    return torch.cat(slopes, dim=1)
