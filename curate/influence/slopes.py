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
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curate.influence.kinks import Near
from curate.influence.tangents import Watcher
from curate.models import FlatModel
from curate.runtime.ranks import everywhere
from curate.trajectory import Gradient, Step, Task, forward, gradient, terms

EVERY = 32
"""Passes between two whose slopes are checked parameter by parameter."""


class Slopes:
    """Takes slopes along one trajectory, and remembers by which road.

    Memory of a pass: that of training. Time: about a third more than a gradient, per direction.
    """

    def __init__(self) -> None:
        self._singly: set[str] = set()
        self._attributed = False
        self._passes = 0
        self._slack = 1.0

    def take(
        self, task: Task, theta: Tensor, step: Step, directions: Sequence[Tensor],
        *, near: Near | None = None, thorough: bool = False,
    ) -> tuple[Gradient, Tensor]:  # fmt: skip
        """The step's gradient at theta, and d_i = <grad l_i, a> along Q directions, shape (P,).

        near: where beside theta piecewise functions are kept on their pieces, see `kinks`.

        Slopes: shape (Q, n), float64, in the unit of l_i per unit of direction. Their sum is
        checked every time; now and then, where it is off, or if `thorough`, by parameter.
        """
        if not (step.weights > 0).all():  # what weighs nothing sends nothing back
            even = step.reweight(torch.ones_like(step.weights))
            found = self.take(task, theta, even, directions, near=near)[1]
            watch = None if near is None else partial(kept, near)
            return gradient(task, theta, step, exactly=True, watch=watch), found
        parts = [task.model.unpack(a) for a in directions]
        thorough |= self._passes % EVERY == 0
        self._passes += 1
        grad, own = self._pass(task, theta, step, parts, near=near, thorough=thorough)
        if not self._attributed and len(step.rows) > 1:
            self._attributed = True
            self._check_rows(task, theta, step, parts, own, near)
        if self._singly:
            own = own + _one_by_one(task, theta, step, parts, sorted(self._singly))
        found = task.ranks.join(own, len(step.rows))
        off = _off(_room(task.model), step, grad, directions, found)
        if thorough and math.isfinite(off):  # by parameter all was right: that is rounding, here
            self._slack = max(self._slack, 2 * off)
        elif off > self._slack:
            return self.take(task, theta, step, directions, near=near, thorough=True)
        return grad, found

    def _pass(
        self, task: Task, theta: Tensor, step: Step, parts: Sequence[Mapping[str, Tensor]],
        *, near: Near | None, thorough: bool,
    ) -> tuple[Gradient, Tensor]:  # fmt: skip
        """The gradient, and this rank's slopes by what is seen in passing, (Q, its rows)."""
        members = {n: p for n, p in task.model.members().items() if n not in self._singly}
        watchers: list[Watcher] = []
        expected = np.zeros((2, len(parts), len(members)))
        chunks = task.chunks(step)

        @contextmanager
        def watch(chunk: slice) -> Iterator[Callable[[Tensor], None]]:
            watchers.append(Watcher(members, parts, chunk.stop - chunk.start))
            with kept(near, chunk), watchers[-1]:
                yield go_back
            if thorough and chunk == chunks[-1]:
                expected[:] = _by_parameter(members, parts).cpu().numpy()

        grad = gradient(task, theta, step, exactly=True, watch=watch)
        weights = step.weights.to(theta.device).double()
        found = [theta.new_zeros(len(parts), 0, dtype=torch.float64)]
        astray = dict[str, str]()
        if thorough:
            astray = _astray(watchers, [*members], expected, _room(task.model))
        if astray:
            self._singly |= astray.keys()
            _warn(astray)
        for chunk, watcher in zip(chunks, watchers, strict=True):
            shares = [x for n, xs in watcher.shares.items() if not n & self._singly for x in xs]
            none = theta.new_zeros(len(parts), chunk.stop - chunk.start)
            found.append(torch.stack([none, *shares]).sum(0, dtype=torch.float64) / weights[chunk])
        return grad, torch.cat(found, dim=1)

    def _check_rows(
        self, task: Task, theta: Tensor, step: Step, parts: Sequence[Mapping[str, Tensor]],
        own: Tensor, near: Near | None,
    ) -> None:  # fmt: skip
        """See that each row's slope is its own: with other weights it has to be the same."""
        golden = torch.arange(len(step.rows), dtype=torch.float64) * 0.618034
        other = step.reweight(step.weights * (0.5 + golden.frac()).to(step.weights.dtype))
        _, again = self._pass(task, theta, other, parts, near=near, thorough=False)
        most = 1e-6 if theta.dtype == torch.float64 else 2e-2
        apart = torch.linalg.vector_norm(again - own) > most * torch.linalg.vector_norm(own)
        if not everywhere(task.ranks, not bool(apart)):
            astray = dict.fromkeys(task.model.names, "rows cannot be told apart in its output")
            self._singly |= astray.keys()
            _warn(astray)
            own.zero_()


@contextmanager
def kept(near: Near | None, chunk: slice) -> Iterator[Callable[[Tensor], None]]:
    """Piecewise functions stay on the pieces that they are on there, if that is given."""
    with nullcontext() if near is None else near.pieces(chunk):
        yield go_back


def _room(model: FlatModel) -> tuple[float, float]:
    """How far sums may be off by rounding: as shares of all slopes' sizes, and of |g| |a|."""
    if model.in_tf32:
        return 0.1, 1e-3
    eps = torch.finfo(model.dtype).eps
    return 3e4 * eps, 64 * eps


def _off(
    room: tuple[float, float], step: Step, grad: Gradient, directions: Sequence[Tensor],
    slopes: Tensor,
) -> float:  # fmt: skip
    """How far sum_i w_i d_i is from <sum_i w_i grad l_i, a>, as a share of the room that there is.

    Along the worst direction.
    """
    if step.scale == 0:  # then there is no gradient to compare with
        return 0.0
    by_slopes, by_lengths = room
    shares = step.weights.to(slopes) * slopes
    products = torch.stack([torch.dot(grad.mean, a) for a in directions])
    lengths = torch.stack(torch._foreach_norm(list(directions)))
    lengths = lengths * torch.linalg.vector_norm(grad.mean)
    factor = terms(step, grad.sizes) / step.scale
    right, lengths = torch.stack([products, lengths]).double() * factor
    most = by_slopes * shares.abs().sum(dim=1) + by_lengths * lengths.abs()
    off = (shares.sum(dim=1) - right).abs() / most.clamp_min(1e-300)
    return float(off.nan_to_num(nan=0.0, posinf=math.inf).max())


def go_back(total: Tensor) -> None:
    """`total.backward()`, but for its first line, which would end a watcher's watch.

    It has to see layers that are computed again on the way back.
    """
    torch.autograd.Variable._execution_engine.run_backward(
        (total,), (torch.ones_like(total),), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _by_parameter(members: Mapping[str, Tensor], parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """By parameter: <grad L, a>, and the product of the two lengths, shape (2, Q, parameters)."""
    if not members:
        return torch.zeros(2, len(parts), 0, dtype=torch.float64)
    grads = [
        torch.zeros_like(p.data) if p.grad is None else p.grad.detach().to_dense()
        for p in members.values()
    ]
    sizes = torch.stack(torch._foreach_norm(grads))
    each = []
    for part in parts:
        own = [part[name] for name in members]
        dots = [torch.dot(g.reshape(-1), a.reshape(-1)) for g, a in zip(grads, own, strict=True)]
        each.append(torch.stack([torch.stack(dots), sizes * torch.stack(torch._foreach_norm(own))]))
    return torch.stack(each, dim=1).double()


def _astray(
    watchers: Sequence["Watcher"], names: Sequence[str], expected: NDArray[Any],
    room: tuple[float, float],
) -> dict[str, str]:  # fmt: skip
    """Parameters whose slopes do not add up to what they have to, and why as far as is known.

    expected: see `_by_parameter`. Where an operation uses several, they are taken together.
    """
    astray: dict[str, str] = {}
    group = {name: {name} for name in names}
    for watcher in watchers:
        astray |= watcher.missed
        for together in watcher.shares:
            joined = set[str]().union(*(group[name] for name in together))
            group |= dict.fromkeys(joined, joined)
    found = {name: np.zeros((2, expected.shape[1])) for name in names}
    for watcher in watchers:
        each = [(min(names), x) for names, xs in watcher.shares.items() for x in xs]
        if each:
            shares = torch.stack([x for _, x in each]).double()
            sums = torch.stack([shares.sum(dim=2), shares.abs().sum(dim=2)], dim=1).cpu().numpy()
            for (name, _), own in zip(each, sums, strict=True):
                found[name] += own
    for joined in {id(own): own for own in group.values()}.values():
        total = np.sum([found[name] for name in joined], axis=0)
        right = np.sum([expected[:, :, names.index(name)] for name in joined], axis=0)
        most = room[0] * total[1] + room[1] * right[1]
        if np.isfinite(right).all() and not np.all(np.abs(total[0] - right[0]) <= most):
            for name in sorted(joined):
                astray.setdefault(name, "it is used where nobody sees it")
    return astray


def _one_by_one(
    task: Task, theta: Tensor, step: Step, parts: Sequence[Mapping[str, Tensor]],
    names: Sequence[str],
) -> Tensor:  # fmt: skip
    """Slopes by some parameters, from a backward pass per row; this rank's rows, (Q, n)."""
    found = [theta.new_zeros(len(parts), 0, dtype=torch.float64)]
    members = task.model.members()
    with task.model.at(theta, training=True) as module:
        for chunk in task.chunks(step):
            losses = forward(task, module, step, chunk, exactly=True).losses
            for i in range(len(losses)):
                for p in members.values():
                    p.grad = None
                losses[i].backward(retain_graph=i + 1 < len(losses))
                own = _by_parameter({name: members[name] for name in names}, parts)
                found.append(own[0].sum(dim=1, keepdim=True))
    return torch.cat(found, dim=1)


def _warn(astray: Mapping[str, str]) -> None:
    name = min(astray)
    more = f" and {len(astray) - 1} more" if len(astray) > 1 else ""
    warnings.warn(
        f"no formula for how parameter {name}{more} moves each row ({astray[name]}): its part of "
        "every score takes a backward pass per row.",
        RuntimeWarning,
        stacklevel=2,
    )
