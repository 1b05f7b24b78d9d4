"""Every row's slope along a direction, from one ordinary backward pass.

With L = sum_i w_i l_i and a direction a in the parameters, wanted are d_i = <grad l_i, a>. Where an
operation y = f(x, p) uses a parameter, moving p by its part a_p of the direction moves y by the
tangent t = (df/dp) a_p, and so L by <dL/dy, t>: row by row, since each row of y belongs to one
example. Summed over all operations that is w_i d_i (DESIGN 3.2). Of a linear layer t is x a_p', so
that the cost beside the backward pass is one more product of matrices per layer, a third of a step.

Which operations use a parameter is seen as they are called (`TorchFunctionMode`): in layers, in
`torch.nn.functional`, by any road. What depends on parameters alone (a transposed weight, a
part of a packed one) carries its tangent on until it meets an example. That nothing was missed is
checked: by parameter, sum_i w_i d_i has to be <grad L, a>, which is known. Where it is not, the
rows' gradients by those parameters are taken one by one, slow and sure.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from curate.policies import Array
from curate.ranks import everywhere
from curate.trajectory import Gradient, Step, Task, forward, gradient

Names = frozenset[str]
Tangents = list[Tensor]
"""One per direction."""

_CONVOLUTIONS = frozenset(
    {
        F.conv1d, F.conv2d, F.conv3d,
        F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    }
)  # fmt: skip
_IN_PLACE = MappingProxyType(
    {
        Tensor.add_: torch.add, Tensor.__iadd__: torch.add,
        Tensor.sub_: torch.sub, Tensor.__isub__: torch.sub,
    }
)  # fmt: skip
"""Operations that overwrite what went in, where the tangent does not depend on it."""
_FOREIGN = (RuntimeError, TypeError, ValueError, NotImplementedError)


class Slopes:
    """Takes slopes along one trajectory, and remembers by which road.

    Memory of a pass: that of training. Time: about a third more than a gradient, per direction.
    """

    def __init__(self) -> None:
        self._singly: set[str] = set()
        self._attributed = False

    def take(
        self, task: Task, theta: Tensor, step: Step, directions: Sequence[Tensor]
    ) -> tuple[Gradient, Tensor]:
        """The step's gradient at theta, and d_i = <grad l_i, a> along Q directions, shape (P,).

        Slopes: shape (Q, n), float64, in the unit of l_i per unit of direction.
        """
        if not (step.weights > 0).all():  # what weighs nothing sends nothing back
            even = step.reweight(torch.ones_like(step.weights))
            found = self.take(task, theta, even, directions)[1]
            return gradient(task, theta, step, exactly=True), found
        parts = [task.model.unpack(a) for a in directions]
        grad, own = self._pass(task, theta, step, parts)
        if not self._attributed and len(step.rows) > 1:
            self._attributed = True
            self._check_rows(task, theta, step, parts, own)
        if self._singly:
            own = own + _one_by_one(task, theta, step, parts, sorted(self._singly))
        return grad, task.ranks.join(own, len(step.rows))

    def _pass(
        self, task: Task, theta: Tensor, step: Step, parts: Sequence[Mapping[str, Tensor]]
    ) -> tuple[Gradient, Tensor]:
        """The gradient, and this rank's slopes by what is seen in passing, (Q, its rows)."""
        members = {n: p for n, p in task.model.members().items() if n not in self._singly}
        watchers: list[_Watcher] = []
        expected = np.zeros((2, len(parts), len(members)))
        chunks = task.chunks(step)

        @contextmanager
        def watch(chunk: slice) -> Iterator[Callable[[Tensor], None]]:
            watchers.append(_Watcher(members, parts, chunk.stop - chunk.start))
            with watchers[-1]:
                yield _go_back
            if chunk == chunks[-1]:
                expected[:] = _by_parameter(members, parts).cpu().numpy()

        grad = gradient(task, theta, step, exactly=True, watch=watch)
        weights = step.weights.to(theta.device).double()
        found = [theta.new_zeros(len(parts), 0, dtype=torch.float64)]
        astray = _astray(watchers, [*members], expected, torch.finfo(theta.dtype).eps)
        if astray:
            self._singly |= astray.keys()
            _warn(astray)
        for chunk, watcher in zip(chunks, watchers, strict=True):
            shares = [x for names, x in watcher.shares.items() if not names & self._singly]
            none = theta.new_zeros(len(parts), chunk.stop - chunk.start, dtype=torch.float64)
            found.append(sum(shares, none) / weights[chunk])
        return grad, torch.cat(found, dim=1)

    def _check_rows(
        self, task: Task, theta: Tensor, step: Step, parts: Sequence[Mapping[str, Tensor]],
        own: Tensor,
    ) -> None:  # fmt: skip
        """See that each row's slope is its own: with other weights it has to be the same."""
        golden = torch.arange(len(step.rows), dtype=torch.float64) * 0.618034
        other = step.reweight(step.weights * (0.5 + golden.frac()).to(step.weights.dtype))
        _, again = self._pass(task, theta, other, parts)
        most = 1e-6 if theta.dtype == torch.float64 else 2e-2
        apart = torch.linalg.vector_norm(again - own) > most * torch.linalg.vector_norm(own)
        if not everywhere(task.ranks, not bool(apart)):
            astray = dict.fromkeys(task.model.names, "rows cannot be told apart in its output")
            self._singly |= astray.keys()
            _warn(astray)
            own.zero_()


def _go_back(total: Tensor) -> None:
    """`total.backward()`, but for its first line, which would end a watcher's watch.

    It has to see layers that are computed again on the way back.
    """
    torch.autograd.Variable._execution_engine.run_backward(  # type: ignore[attr-defined]
        (total,), (torch.ones_like(total),), False, False, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _by_parameter(
    members: Mapping[str, Tensor], parts: Sequence[Mapping[str, Tensor]]
) -> Tensor:
    """By parameter: <grad L, a>, and the product of the two lengths, shape (2, Q, parameters)."""
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
    watchers: Sequence["_Watcher"], names: Sequence[str], expected: Array, eps: float
) -> dict[str, str]:
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
        if watcher.shares:
            shares = torch.stack([*watcher.shares.values()])
            sums = torch.stack([shares.sum(dim=2), shares.abs().sum(dim=2)], dim=1).cpu().numpy()
            for together, own in zip(watcher.shares, sums, strict=True):
                found[min(together)] += own
    for joined in {id(own): own for own in group.values()}.values():
        total = sum(found[name] for name in joined)
        right = sum(expected[:, :, names.index(name)] for name in joined)
        assert isinstance(total, np.ndarray)
        room = 3e4 * eps * total[1] + 64 * eps * right[1]
        if np.isfinite(right).all() and not np.all(np.abs(total[0] - right[0]) <= room):
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


class _Watcher(TorchFunctionMode):
    """Collects w_i d_i of one chunk, for Q directions, while forward and backward run inside.

    Args:
        parameters: the trainable ones by name, as the module has them. directions: their parts of
            each of Q directions. rows: examples in the chunk.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]],
        rows: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self._rows = rows
        self._tracked: dict[int, tuple[Tensor, Names, Tangents]] = {
            id(p): (p, frozenset({name}), [each[name] for each in directions])
            for name, p in parameters.items()
        }
        self.count = len(directions)
        self.shares: dict[Names, Tensor] = {}
        self.missed: dict[str, str] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if not torch.is_grad_enabled() or not self._uses(args, kwargs):
            return output
        call = _Call.of(args, kwargs)
        outputs = [y for y in _tensors(output) if y.requires_grad]
        if not outputs:
            return output
        given = call.tensors()
        names: Names = frozenset().union(
            *(self._tracked[id(x)][1] for x in given if id(x) in self._tracked)
        )
        rest = [x for x in given if id(x) not in self._tracked]
        fixed = not any(x.requires_grad for x in rest)
        func = _IN_PLACE.get(func, func)
        if _overwrites(func):
            self._miss(names, f"{_name(func)} overwrites what it is given")
            return output
        if fixed and not (rest and all(self._by_rows(y, rest) for y in outputs)):
            self._carry_on(func, call, output, names)
        elif len(outputs) == 1 and outputs[0] is output and self._layout(output) is not None:
            return self._attach(func, call, output, names)
        else:
            self._miss(names, f"{_name(func)} puts out {tuple(outputs[0].shape)}")
        return output

    def _uses(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a parameter, or what depends on parameters alone, is among the arguments."""
        for x in (*args, *kwargs.values()):
            if isinstance(x, Tensor):
                if id(x) in self._tracked:
                    return True
            elif isinstance(x, list | tuple) and self._uses(tuple(x), {}):
                return True
        return False

    def _miss(self, names: Names, why: str) -> None:
        for name in names:
            self.missed.setdefault(name, why)

    def _by_rows(self, output: Tensor, rest: Sequence[Tensor]) -> bool:
        """Whether what was computed from parameters and constants runs along the examples.

        Positions do not, even where there happen to be as many of them as examples.
        """
        return self._layout(output) in (0, -1) and not any(
            x.ndim == 1 and not x.is_floating_point() and self._rows > 1
            and torch.equal(x, torch.arange(len(x), device=x.device))
            for x in rest
        )  # fmt: skip

    def _layout(self, output: Tensor) -> int | None:
        """The dimension of an output that runs along the examples; -1 for folded into the first."""
        shape, n = output.shape, self._rows
        if n == 1 or (shape and shape[0] == n):
            return 0
        if len(shape) >= 3 and shape[1] == n:
            return 1
        return -1 if shape and shape[0] % n == 0 and shape[0] else None

    def _carry_on(self, func: Any, call: "_Call", output: Any, names: Names) -> None:
        """What depends on parameters alone has a tangent itself."""
        try:
            each = [call.tangent(func, self._along(call, q)) for q in range(self.count)]
        except _FOREIGN as error:
            self._miss(names, f"{_name(func)}: {error}")
            return
        for k, y in enumerate(_tensors(output)):
            if y.requires_grad:
                self._tracked[id(y)] = (y, names, [own[k] for own in each])

    def _attach(self, func: Any, call: "_Call", output: Tensor, names: Names) -> Tensor:
        """Have an output's share of the slopes taken when its gradient comes by."""
        layout, along = self._layout(output), [self._along(call, q) for q in range(self.count)]

        def take(gradient: Tensor, held: Sequence[Tensor]) -> None:
            again = call.holding(held)
            try:
                with torch.no_grad():
                    products = (again.effect(func, own, gradient) for own in along)
                    found = torch.stack([_by_row(p, layout, self._rows) for p in products])
            except _FOREIGN as error:
                self._miss(names, f"{_name(func)}: {error}")
                return
            before = self.shares.get(names)
            self.shares[names] = found if before is None else before + found

        held = [x.detach() for x in call.tensors()]
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            output.register_hook(lambda gradient: take(gradient.detach(), held))
            return output
        # where activations are computed again instead of kept, what is needed here is, too
        shared: Tensor = _Share.apply(output, take, *held)  # type: ignore[no-untyped-call]
        return shared

    def _along(self, call: "_Call", q: int) -> dict[int, Tensor]:
        """By place among a call's arguments: the tangents of those that have one."""
        return {
            place: self._tracked[id(x)][2][q]
            for place, x in enumerate(call.leaves)
            if id(x) in self._tracked and isinstance(x, Tensor)
        }


class _Call:
    """The arguments of a call, flattened."""

    def __init__(self, leaves: list[Any], spec: Any, *, by_place: bool) -> None:
        self.leaves, self._spec, self._by_place = leaves, spec, by_place

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "_Call":
        leaves, spec = tree_flatten((args, dict(kwargs)))
        return cls(leaves, spec, by_place=not kwargs)

    def tensors(self) -> list[Tensor]:
        return [x for x in self.leaves if isinstance(x, Tensor)]

    def holding(self, tensors: Sequence[Tensor]) -> "_Call":
        """The same call with other tensors."""
        given = iter(tensors)
        own = [next(given) if isinstance(x, Tensor) else x for x in self.leaves]
        return _Call(own, self._spec, by_place=self._by_place)

    def arguments(self, instead: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What to call with, some of the leaves replaced."""
        own = [instead.get(place, x) for place, x in enumerate(self.leaves)]
        args, kwargs = tree_unflatten(own, self._spec)
        return args, kwargs

    def tangent(self, func: Any, along: Mapping[int, Tensor]) -> list[Tensor]:
        """(df/dp) a_p of every output, by forward-mode differentiation of this one call."""
        with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            plain = {k: x.detach() for k, x in enumerate(self.leaves) if isinstance(x, Tensor)}
            duals = {k: forward_ad.make_dual(plain[k], t) for k, t in along.items()}
            args, kwargs = self.arguments(plain | duals)
            parts = [forward_ad.unpack_dual(y) for y in _tensors(func(*args, **kwargs))]
            return [
                torch.zeros_like(part.primal) if part.tangent is None else part.tangent.clone()
                for part in parts
            ]

    def effect(self, func: Any, along: Mapping[int, Tensor], gradient: Tensor) -> Tensor:
        """dL/dy times t, entry by entry, or what sums to the same along every row."""
        if self._by_place and func is F.linear and 0 not in along:
            return self._affine(0, 1, 2, along, gradient, transposed=True)
        if self._by_place and func is torch.addmm and len(self.leaves) == 3 and 1 not in along:
            return self._affine(1, 2, 0, along, gradient, transposed=False)
        if self._by_place and func in _CONVOLUTIONS and 1 in along and 0 not in along:
            bias = along.get(2) if len(self.leaves) > 2 else None
            args, kwargs = self.arguments({1: along[1], 2: bias})
            return gradient * func(*args, **kwargs)
        return gradient * self.tangent(func, along)[0]

    def _affine(
        self, x: int, weight: int, bias: int, along: Mapping[int, Tensor], gradient: Tensor,
        *, transposed: bool,
    ) -> Tensor:  # fmt: skip
        """Of x V + v; through V on whichever side is smaller."""
        inputs: Tensor = self.leaves[x]
        found = gradient.new_zeros(())
        if weight in along:
            moved = along[weight].T if transposed else along[weight]
            if moved.shape[0] < moved.shape[1]:
                found = ((gradient @ moved.T) * inputs).sum(-1, keepdim=True)
            else:
                found = (gradient * (inputs @ moved)).sum(-1, keepdim=True)
        if bias in along:
            found = found + (gradient * along[bias]).sum(-1, keepdim=True)
        return found


class _Share(torch.autograd.Function):
    """The identity; on the way back a share is taken with what autograd kept for it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, take: Any, *held: Tensor) -> Tensor:
        ctx.take = take
        ctx.save_for_backward(*held)
        return output.view_as(output)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> Any:
        held = ctx.saved_tensors  # asked for once, as checkpointing wants it
        ctx.take(gradient, held)
        return (gradient, None, *[None] * len(held))


def _by_row(product: Tensor, layout: int | None, rows: int) -> Tensor:
    """Sums over what belongs to each example, float64, shape (n,)."""
    if rows == 1:
        return product.sum(dtype=torch.float64).reshape(1)
    if layout == 1:
        product = product.transpose(0, 1)
    return product.reshape(rows, -1).sum(dim=1, dtype=torch.float64)


def _tensors(value: Any) -> list[Tensor]:
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _overwrites(func: Any) -> bool:
    name = _name(func)
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))
