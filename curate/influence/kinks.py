"""Piecewise functions kept on the pieces that they are on, a little way from where they are.

The gradient of a network of ReLUs jumps wherever a unit goes on or off. Between two jumps it has a
derivative, which is what an influence goes back by (and what autograd means by a second
derivative); a difference of gradients across a jump is larger the shorter it is. So a pass at
shifted parameters takes every kinked function f as it goes on from its piece:

    f(x0) + f'(x0) (x - x0),    x0 the input at the parameters that are not shifted

and every comparison as it came out there. What is piecewise without being seen (in custom
autograd functions, or layers of one kernel, such as `nn.RNN` of ReLUs) is not kept.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from curate.influence.tangents import Call, load_forward_mode, tensors_in

_METHODS = (
    "abs absolute __abs__ amax amin clamp clamp_ clamp_max clamp_max_ clamp_min clamp_min_ clip "
    "clip_ fmax fmin max maximum median min minimum relu relu_ sort topk ceil floor round sign "
    "trunc "
)
_FUNCTIONS = (
    "hardshrink hardsigmoid hardtanh hardtanh_ l1_loss leaky_relu leaky_relu_ multi_margin_loss "
    "relu relu6 relu_ softshrink threshold"
)
_POOLS = "max_pool1d max_pool2d max_pool3d "
_POOLS_OF_F = "".join(
    f"{pool} {pool}_with_indices adaptive_{pool} adaptive_{pool}_with_indices "
    for pool in _POOLS.split()
)
_PIECEWISE = frozenset(
    getattr(place, name)
    for place, names in (
        (Tensor, _METHODS),
        (torch, _POOLS + _METHODS),
        (F, _POOLS_OF_F + _FUNCTIONS),
    )
    for name in names.split()
    if hasattr(place, name)
)
_RELUS = frozenset({F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_})
"""Functions for which one bit per number is enough."""


def _hardswish(x: Tensor, inplace: bool = False) -> Tensor:
    if inplace:
        return x.copy_(_hardswish(x.clone()))
    return x * F.hardsigmoid(x)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    slopes = weight if weight.numel() == 1 else weight.reshape(-1, *[1] * (x.ndim - 2))
    return F.relu(x) - slopes * F.relu(-x)


_MADE_OF: dict[Any, Callable[..., Tensor]] = {
    F.hardswish: _hardswish,
    F.prelu: _prelu,
    torch.prelu: _prelu,
}
"""Piecewise functions that are written in terms of those above."""


class Seen(NamedTuple):
    """A call of a function that is piecewise, or that decides (a comparison, an order).

    inputs: what went in; for a ReLU, only where it was above 0; for what decides, what it put out.
    output: what came out, without the numbers.
    """

    func: Any
    inputs: Sequence[Tensor]
    output: Any
    in_place: bool = False


class Pieces(TorchFunctionMode):
    """Sees on which pieces a pass is while it runs inside, or keeps it to those `seen` before."""

    def __init__(self, seen: Sequence[Seen] | None = None) -> None:
        super().__init__()
        self._keep, self._next = seen, 0
        self.seen: list[Seen] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _MADE_OF:
            with self:
                return _MADE_OF[func](*args, **kwargs)
        if func not in _PIECEWISE:
            return self._decide(func, args, kwargs)
        call = Call.of(func, args, kwargs)
        inputs = [x for x in call.tensors() if _is_number(x)]
        if not any(x.requires_grad for x in inputs):
            return func(*args, **kwargs)
        relu = func in _RELUS
        now = [inputs[0].detach() > 0] if relu else inputs
        if self._keep is not None:
            there = self._find(func, now)
            if there is None:
                return func(*args, **kwargs)
            return _go_on_relu(there, inputs[0]) if relu else _go_on(there, call, inputs)
        before = now if relu else [x.detach().clone() for x in inputs]
        output = func(*args, **kwargs)
        numberless = tree_map(lambda y: None if _is_number(y) else y, output)
        self.seen.append(Seen(func, before, numberless, in_place=output is inputs[0]))
        return output

    def _decide(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Call a function, and see whether it decides by numbers that depend on parameters."""
        output = func(*args, **kwargs)
        decided = tensors_in(output)
        if not decided or any(_is_number(y) for y in decided):
            return output
        if not any(x.requires_grad for x in tensors_in((args, kwargs))):
            return output
        if self._keep is None:
            self.seen.append(Seen(func, [y.clone() for y in decided], output))
            return output
        there = self._find(func, decided)
        return output if there is None else there.output

    def _find(self, func: Any, now: Sequence[Tensor]) -> Seen | None:
        """This call in the pass that is kept to.

        Calls come in the same order, but for layers that are computed again on the way back:
        for those it is the one that was most alike.
        """
        assert self._keep is not None
        if self._next < len(self._keep) and _fits(self._keep[self._next], func, now):
            self._next += 1
            return self._keep[self._next - 1]
        alike = [seen for seen in self._keep if _fits(seen, func, now)]
        return min(alike, key=lambda seen: _distance(seen.inputs, now), default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def _fits(seen: Seen, func: Any, now: Sequence[Tensor]) -> bool:
    return seen.func is func and [x.shape for x in seen.inputs] == [x.shape for x in now]


def _distance(inputs: Sequence[Tensor], now: Sequence[Tensor]) -> float:
    return sum(float((a != b).sum()) for a, b in zip(inputs, now, strict=True))


def _go_on_relu(there: Seen, x: Tensor) -> Tensor:
    on = there.inputs[0]
    return x.mul_(on) if there.in_place else x * on


def _go_on(there: Seen, call: Call, inputs: Sequence[Tensor]) -> Any:
    """The output of a call that goes on from where it was `there`."""
    before = iter(there.inputs)
    at_x0 = call.holding([next(before) if _is_number(x) else x for x in call.tensors()])
    values = _values(there.func, at_x0, inputs)
    numbers = iter(_GoneOn.apply(there.func, at_x0, values, *inputs))  # type: ignore[no-untyped-call]
    output = tree_map(lambda y: next(numbers) if y is None else y, there.output)
    return inputs[0].copy_(output) if there.in_place else output


def _values(func: Any, call: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
    """f(x0) + f'(x0) (x - x0), each output of f that is a number; `call` is that with x0."""
    load_forward_mode()
    now = iter(inputs)
    with torch.no_grad(), forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(x.clone(), next(now) - x) for k, x in _numbers(call)}
        args, kwargs = call.arguments(duals)
        outputs = [y for y in tensors_in(func(*args, **kwargs)) if _is_number(y)]
        parts = map(forward_ad.unpack_dual, outputs)
        return [y.clone() if moved is None else y + moved for y, moved in parts]


class _GoneOn(torch.autograd.Function):
    """The identity on values; on the way back, the derivative of `func` where `call` is."""

    @staticmethod
    def forward(ctx: Any, func: Any, call: Call, values: list[Tensor], *_: Tensor) -> Any:
        ctx.func, ctx.call = func, call
        return tuple(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with torch._C.DisableTorchFunction(), torch.enable_grad():
            inputs = {k: x.detach().requires_grad_() for k, x in _numbers(ctx.call)}
            args, kwargs = ctx.call.arguments({k: x.clone() for k, x in inputs.items()})
            outputs = [y for y in tensors_in(ctx.func(*args, **kwargs)) if _is_number(y)]
            back = torch.autograd.grad(outputs, [*inputs.values()], gradients, allow_unused=True)
        return (None, None, None, *back)


def _numbers(call: Call) -> list[tuple[int, Tensor]]:
    """The inputs of a call that are numbers, and their places."""
    return [(k, x) for k, x in enumerate(call.leaves) if _is_number(x)]
