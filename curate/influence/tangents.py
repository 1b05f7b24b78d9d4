"""How the operations of a pass move when their parameters do, seen as they are called.

Where an operation y = f(x, p) uses a parameter, moving p by its part a_p of a direction moves y by
the tangent t = (df/dp) a_p, and so the loss by <dL/dy, t>: row by row, since each row of y
belongs to one example. For a linear layer t is x a_p', one more product of matrices.

What depends on parameters alone (a transposed weight, a part of a packed one) carries its tangent
on until it meets an example.
"""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from inspect import signature
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_map, tree_unflatten

Names = frozenset[str]
Parts = Mapping[str, Tensor]
"""A vector of shape (P,), parameter by parameter."""
Tangents = list[Tensor]
"""One per output."""
Moved = Callable[[Parts], Tensor]
"""A direction -> the tangent of what depends on parameters alone."""

_CONVOLUTIONS = frozenset(
    {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
)
_SIGNATURES = {f: signature(f) for f in (F.embedding, F.layer_norm)}
_IN_PLACE = {
    **dict.fromkeys((Tensor.add_, Tensor.__iadd__), torch.add),
    **dict.fromkeys((Tensor.sub_, Tensor.__isub__), torch.sub),
}
"""Operations that overwrite what went in, where the tangent does not depend on it."""
_DRAWING = frozenset(
    {F.multi_head_attention_forward, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu}
)
"""Functions with dropout inside, which has to fall again as it did."""
FLAT = -2
_FOREIGN = (RuntimeError, TypeError, ValueError, NotImplementedError)


class Watcher(TorchFunctionMode):
    """Sees how one chunk uses parameters, while forward and backward run inside.

    Args:
        parameters: the trainable ones by name, as the module has them. rows: examples in the chunk.
        owners: the example of every token, shape (T,), where all are laid end to end.
        directions: Q of them, parameter by parameter, along which `shares` are taken as the
            backward pass comes by. None: what that needs is kept, for directions that are not
            known yet; its memory is that of layer inputs and output gradients.
    """

    def __init__(
        self,
        parameters: Parts,
        rows: int,
        directions: Sequence[Parts] | None = None,
        owners: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._rows, self._directions, self._owners = rows, directions, owners
        self._tracked: dict[int, tuple[Tensor, Names, Moved]] = {
            id(p): (p, frozenset({name}), itemgetter(name)) for name, p in parameters.items()
        }
        self._kept: deque[_Use] = deque()
        self.shares: dict[Names, list[Tensor]] = {}
        """By the parameters that they are of: shares of w_i d_i, each of shape (Q, rows)."""
        self.missed: dict[str, str] = {}
        self.kept_all = True
        """Whether what was kept is all; it is not of activations that are computed again."""

    def take(self, directions: Sequence[Parts]) -> None:
        """Take the shares of what was kept, and keep it no longer."""
        while self._kept:
            self._share(self._kept.popleft(), directions)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}  # most calls use no parameter: what comes first is to be quick
        if not (self._uses(args) or self._uses(kwargs.values())) or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        call = Call.of(func, args, kwargs)
        output = func(*args, **kwargs)
        outputs = tensors_in(output)
        trained = [y for y in outputs if y.requires_grad]
        if not trained:
            return output
        tensors = call.tensors()
        tracked = [self._tracked[id(x)] for x in tensors if id(x) in self._tracked]
        names: Names = frozenset().union(*(names for _, names, _ in tracked))
        rest = [x for x in tensors if id(x) not in self._tracked]
        func = _IN_PLACE.get(func, func)
        if _overwrites(func):
            self._miss(names, f"{_name(func)} overwrites what it is given")
            return output
        use = _Use(func, call, self._along(call), names)
        fixed = not any(x.requires_grad for x in rest)
        if fixed and not (rest and all(self._by_rows(y, rest) for y in trained)):
            moved = _Carried(use.holding([x.detach() for x in call.tensors()]))
            for k, y in enumerate(outputs):
                if y.requires_grad:
                    self._tracked[id(y)] = (y, names, partial(moved.output, k))
            return output
        for y in trained:
            if self._layout(y) is None:
                self._miss(names, f"{_name(func)} puts out {tuple(y.shape)}")
                return output
        watched = {
            id(y): self._attach(replace(use, place=place, layout=self._layout(y)), y)
            for place, y in enumerate(outputs)
            if y.requires_grad
        }
        return tree_map(lambda y: watched.get(id(y), y), output)

    def _uses(self, arguments: Iterable[Any]) -> bool:
        """Whether a parameter, or what depends on parameters alone, is among the arguments."""
        for x in arguments:
            if id(x) in self._tracked or (isinstance(x, list | tuple) and self._uses(x)):
                return True
        return False

    def _miss(self, names: Names, why: str) -> None:
        for name in names:
            self.missed.setdefault(name, why)

    def _by_rows(self, output: Tensor, rest: Sequence[Tensor]) -> bool:
        """Whether what was computed from parameters and constants runs along the examples.

        Positions do not, even where there happen to be as many of them as examples.
        """
        return self._layout(output) in (0, -1, FLAT) and not (
            self._rows > 1 and any(_are_positions(x) for x in rest)
        )

    def _layout(self, output: Tensor) -> int | None:
        """The dimension of an output that runs along the examples; -1 for folded into the first,
        and `FLAT` where it runs along tokens that are laid end to end.
        """
        shape, n = output.shape, self._rows
        if self._owners is not None and len(self._owners) in shape[: 2 if shape[:1] == (1,) else 1]:
            return FLAT
        if n == 1 or (shape and shape[0] == n):
            return 0
        if len(shape) >= 3 and shape[1] == n:
            return 1
        return -1 if shape and shape[0] % n == 0 and shape[0] else None

    def _attach(self, use: "_Use", output: Tensor) -> Tensor:
        """Have an output's share of the slopes taken when its gradient comes by."""

        def take(gradient: Tensor, held: Sequence[Tensor]) -> None:
            seen = replace(use.holding(held), gradient=gradient)
            if self._directions is not None:
                self._share(seen, self._directions)
            elif self.kept_all:  # else it would be kept for nothing
                self._kept.append(seen)

        held = [x.detach() for x in use.call.tensors()]
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is None:
            output.register_hook(lambda gradient: take(gradient.detach(), held))
            return output
        if self._directions is None:
            self.kept_all = False
            return output
        # where activations are computed again instead of kept, what is needed here is, too
        shared: Tensor = _Share.apply(output, take, *held)  # type: ignore[no-untyped-call]
        return shared

    def _share(self, use: "_Use", directions: Sequence[Parts]) -> None:
        try:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                products = (use.effect(parts) for parts in directions)
                share = torch.stack([self._by_row(p, use.layout) for p in products])
        except _FOREIGN as error:
            self._miss(use.names, f"{_name(use.func)}: {error}")
            return
        self.shares.setdefault(use.names, []).append(share)

    def _by_row(self, product: Tensor, layout: int | None) -> Tensor:
        """Sums over what belongs to each example, shape (n,)."""
        if layout == FLAT and self._owners is not None:
            by_token = product.reshape(len(self._owners), -1).sum(dim=1)
            return by_token.new_zeros(self._rows).index_add(0, self._owners, by_token)
        if layout == 1 and self._rows > 1:
            product = product.transpose(0, 1)
        return product.reshape(self._rows, -1).sum(dim=1)

    def _along(self, call: "Call") -> "dict[int, Moved]":
        """By place among a call's arguments: how those that depend on parameters alone move."""
        return {
            place: self._tracked[id(x)][2]
            for place, x in enumerate(call.leaves)
            if id(x) in self._tracked and isinstance(x, Tensor)
        }


@dataclass(frozen=True)
class Call:
    """The arguments of a call.

    leaves, form: the arguments by place and by name, flattened, and how to put them together
    again. by_place: none is by name. rng: states of the generators, if the call may draw.
    """

    leaves: list[Any]
    form: TreeSpec
    by_place: bool
    rng: list[Tensor]

    @classmethod
    def of(cls, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> "Call":
        if func in _SIGNATURES:  # torch hands some of their arguments on by name
            bound = _SIGNATURES[func].bind(*args, **kwargs)
            bound.apply_defaults()
            args, kwargs = bound.args, bound.kwargs
        leaves, form = tree_flatten((args, kwargs))
        rng = [g.get_state() for g in _generators()] if func in _DRAWING else []
        return cls(leaves, form, not kwargs, rng)

    def tensors(self) -> list[Tensor]:
        return [x for x in self.leaves if isinstance(x, Tensor)]

    def holding(self, tensors: Sequence[Tensor]) -> "Call":
        """This call with other tensors."""
        others = iter(tensors)
        leaves = [next(others) if isinstance(x, Tensor) else x for x in self.leaves]
        return replace(self, leaves=leaves)

    def arguments(self, instead: Mapping[int, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments to call with, some of the leaves replaced."""
        leaves = [instead.get(place, x) for place, x in enumerate(self.leaves)]
        args, kwargs = tree_unflatten(leaves, self.form)
        return args, kwargs

    def tangent(self, func: Any, along: Mapping[int, Tensor]) -> list[Tensor]:
        """(df/dp) a_p of every output: by a formula, or by forward-mode differentiation of this
        one call, or where torch has none for it by differentiating backward mode.
        """
        moved = self._by_formula(func, along) if self.by_place and 0 not in along else None
        if moved is not None:
            return [moved]
        load_forward_mode()
        with sdpa_kernel(SDPBackend.MATH), _drawing_from(self.rng):
            try:
                return self._forward(func, along)
            except _FOREIGN:
                return self._twice_backward(func, along)

    def _forward(self, func: Any, along: Mapping[int, Tensor]) -> list[Tensor]:
        with torch.no_grad(), forward_ad.dual_level():
            plain = self._detached()
            duals = {k: forward_ad.make_dual(plain[k], t) for k, t in along.items()}
            args, kwargs = self.arguments(plain | duals)
            parts = [forward_ad.unpack_dual(y) for y in tensors_in(func(*args, **kwargs))]
            return [
                torch.zeros_like(part.primal) if part.tangent is None else part.tangent.clone()
                for part in parts
            ]

    def _twice_backward(self, func: Any, along: Mapping[int, Tensor]) -> list[Tensor]:
        """The derivative of u -> (df/dp)' u, which is linear in u, along a_p."""
        plain = self._detached()
        inputs = [plain[k].requires_grad_() for k in along]
        with torch.enable_grad():
            args, kwargs = self.arguments(plain)
            outputs = tensors_in(func(*args, **kwargs))
            pulls = [torch.zeros_like(y, requires_grad=True) for y in outputs]
            back = torch.autograd.grad(
                outputs, inputs, pulls, create_graph=True, materialize_grads=True
            )
            return list(torch.autograd.grad(back, pulls, [*along.values()], materialize_grads=True))

    def _detached(self) -> dict[int, Tensor]:
        return {k: x.detach() for k, x in enumerate(self.leaves) if isinstance(x, Tensor)}

    def effect(
        self, func: Any, along: Mapping[int, Tensor], gradient: Tensor, place: int
    ) -> Tensor:
        """dL/dy times t, entry by entry, or what sums to the same along every row."""
        if self.by_place and func is F.linear and 0 not in along:
            x, moved, bias = self.leaves[0], along.get(1), along.get(2)
            return _affine(x, None if moved is None else moved.T, bias, gradient)
        if self.by_place and func is torch.addmm and len(self.leaves) == 3 and 1 not in along:
            return _affine(self.leaves[1], along.get(2), along.get(0), gradient)
        return gradient * self.tangent(func, along)[place]

    def _by_formula(self, func: Any, along: Mapping[int, Tensor]) -> Tensor | None:
        """(df/dp) a_p of what is linear in all of its parameters: f with a_p in their places."""
        instead: dict[int, Any] = dict(along)
        if func in _CONVOLUTIONS and 1 in along:
            instead |= {2: along.get(2)} if len(self.leaves) > 2 else {}
        elif func is F.layer_norm:  # input, sizes of its shape, weight, bias, eps
            if not {len(self.leaves) - 3, len(self.leaves) - 2} <= along.keys():
                return None
        elif func is F.embedding:  # indices, weight, padding_idx, max_norm, ...
            if 1 not in along or any(x is not None for x in self.leaves[3:4]):
                return None
        else:
            return None
        args, kwargs = self.arguments(instead)
        moved: Tensor = func(*args, **kwargs)
        padding = self.leaves[2] if func is F.embedding and len(self.leaves) > 2 else None
        if padding is not None:  # whose gradient is left out
            padded = self.leaves[0] == padding % len(self.leaves[1])
            moved = moved.masked_fill(padded[..., None], 0)
        return moved


@dataclass(frozen=True)
class _Use:
    """A call that uses parameters.

    along: how its arguments move, by place. names: of the parameters. place: of the output that
    is meant, among all. layout: see `Watcher`. gradient: of the loss by that output.
    """

    func: Any
    call: Call
    along: Mapping[int, Moved]
    names: Names
    place: int = 0
    layout: int | None = None
    gradient: Tensor | None = None

    def holding(self, tensors: Sequence[Tensor]) -> "_Use":
        """With other tensors in the call."""
        return replace(self, call=self.call.holding(tensors))

    def moved(self, parts: Parts) -> dict[int, Tensor]:
        """Tangents of the arguments along a direction."""
        return {place: moved(parts) for place, moved in self.along.items()}

    def effect(self, parts: Parts) -> Tensor:
        """See `Call.effect`."""
        assert self.gradient is not None
        return self.call.effect(self.func, self.moved(parts), self.gradient, self.place)


class _Carried:
    """Outputs of a call that depend on parameters alone, and how they move."""

    def __init__(self, use: _Use) -> None:
        self._use = use
        self._found: list[tuple[Parts, Tangents]] = []

    def output(self, place: int, parts: Parts) -> Tensor:
        """The tangent of one of them along a direction; computed once for each direction."""
        for known, tangents in self._found:
            if known is parts:
                return tangents[place]
        tangents = self._use.call.tangent(self._use.func, self._use.moved(parts))
        self._found.append((parts, tangents))
        return tangents[place]


def _affine(x: Tensor, matrix: Tensor | None, bias: Tensor | None, gradient: Tensor) -> Tensor:
    """`Call.effect` for x V + v, of parts V and v of a direction; through V on its smaller side."""
    if matrix is None:
        assert bias is not None
        return gradient * bias
    if matrix.shape[0] < matrix.shape[1]:
        product = (gradient @ matrix.T) * x
        return product if bias is None else product.sum(-1) + gradient @ bias
    tangent = x @ matrix
    return gradient * (tangent if bias is None else tangent + bias)


class _Share(torch.autograd.Function):
    """The identity; on the way back a share is taken with what autograd kept for it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, take: Any, *held: Tensor) -> Tensor:
        ctx.take = take
        ctx.save_for_backward(*held)
        return output.view_as(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        held = ctx.saved_tensors  # asked for once, as checkpointing wants it
        ctx.take(gradient, held)
        return (gradient, None, *[None] * len(held))


@cache
def load_forward_mode() -> None:
    """Have torch load forward mode, some of it in a way that torch itself warns of."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _generators() -> list[torch.Generator]:
    """The generators that torch's functions draw from."""
    if not torch.cuda.is_initialized():
        return [torch.default_generator]
    return [torch.default_generator, torch.cuda.default_generators[torch.cuda.current_device()]]


@contextmanager
def _drawing_from(states: Sequence[Tensor]) -> Iterator[None]:
    """Draw as from these states of the generators, if any, and leave them as they are now."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices, enabled=bool(states)):
        for generator, state in zip(_generators(), states, strict=False):
            generator.set_state(state)
        yield


def _are_positions(x: Tensor) -> bool:
    """Whether they are 0, 1, 2, ..."""
    if x.ndim != 1 or x.is_floating_point():
        return False
    return torch.equal(x, torch.arange(len(x), device=x.device))


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in lists, tuples and dictionaries, in order."""
    return [x for x in tree_leaves(value) if isinstance(x, Tensor)]


def _overwrites(func: Any) -> bool:
    name = _name(func)
    return name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", func))
