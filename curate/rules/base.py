"""The contract of a rule: an optimizer as a pure function of gradient and state."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from curate.errors import OptimizerError

Slots = dict[str, Tensor]
Shape = tuple[int, ...]
Shapes = tuple[Shape, ...]
Adjoint = tuple[Tensor, ...]
"""Derivative of Q target losses with respect to a state: one (Q, size) tensor for
each of `State.tensors()`, in that order."""


class State(NamedTuple):
    """Everything that one training step hands to the next.

    theta: the trainable parameters as one vector, shape (P,).
    slots: the optimizer's own vectors (momentum, second moment) by name.
    step: updates done so far; the bias corrections of Adam read it.
    """

    theta: Tensor
    slots: Mapping[str, Tensor]
    step: int

    def tensors(self) -> tuple[Tensor, ...]:
        """theta, then the slots in the order of their names: the order of every adjoint."""
        return (self.theta, *(self.slots[name] for name in sorted(self.slots)))

    def with_tensors(self, tensors: tuple[Tensor, ...]) -> "State":
        """This state with other tensors, given in the order of `tensors()`."""
        return State(tensors[0], dict(zip(sorted(self.slots), tensors[1:], strict=True)), self.step)

    def saved(self) -> dict[str, Any]:
        """The state as plain containers of tensors."""
        return {"theta": self.theta, "slots": dict(self.slots), "step": self.step}

    @classmethod
    def restored(cls, tree: Mapping[str, Any], device: torch.device) -> "State":
        """The state that `saved` returned as `tree`, on a device."""
        slots = {name: slot.to(device) for name, slot in tree["slots"].items()}
        return cls(tree["theta"].to(device), slots, tree["step"])

    def nbytes(self) -> int:
        """Bytes that keeping this state costs."""
        return sum(t.nbytes for t in self.tensors())


class Rule(Protocol):
    """An optimizer: a start for its slots, and a differentiable update.

    `update` must not mutate its arguments; it is differentiated with respect to `grad`
    and to every tensor of `state`.

    elementwise: whether the update of a parameter depends only on its own entries of
        gradient and state, so that any part of the parameters can be updated by itself.
    TORCH: the class of `torch.optim` that takes the same steps; its settings have the
        names of the rule's fields. None if a live one cannot be read.
    SLOTS: the rule's slots -> their names in the state of that class.
    """

    elementwise: ClassVar[bool]
    TORCH: ClassVar[type[torch.optim.Optimizer] | None] = None
    SLOTS: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def init(self, theta: Tensor) -> Slots:
        """The slots before the first step, for parameters `theta` of shape (P,)."""
        ...

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        """The next state; `lrs` has one learning rate per param group."""
        ...


@runtime_checkable
class HasVjp(Protocol):
    """A rule that knows its own derivative; autograd finds that of the others."""

    def vjp(
        self, grad: Tensor, state: State, lrs: tuple[float, ...], adjoint: Adjoint
    ) -> tuple[Tensor, Adjoint]:
        """The adjoint of the state after `update` taken to grad, (Q, P), and the state before.

        What reaches the state by way of the gradient is left out.
        """
        ...


def initial_state(rule: Rule, theta: Tensor) -> State:
    """The state before the first step of training, from parameters of shape (P,)."""
    return State(theta, rule.init(theta), 0)


def refuse_zero_eps(eps: float, name: str = "eps") -> None:
    """Raise OptimizerError unless `eps` is above 0."""
    if not eps > 0:
        raise OptimizerError(
            f"{name} must be above 0 but got {eps}: without it the update has no derivative "
            "where a gradient is 0."
        )


def unflatten(vector: Tensor, shapes: Shapes) -> list[Tensor]:
    """Consecutive parts of a vector, in the shapes of the parameters that it is made of."""
    parts = vector.split([math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def flatten(parts: Sequence[Tensor], *, like: Tensor) -> Tensor:
    """Tensors as one vector, the inverse of `unflatten`; without any, an empty one like `like`."""
    return torch.cat([part.reshape(-1) for part in parts]) if parts else like.new_empty(0)


def safe_sqrt(x: Tensor) -> Tensor:
    """Square root whose derivative at 0 is 0 instead of infinite.

    Second moments are exactly 0 for dead units; an infinite derivative there
    would turn every score into NaN. Without a graph it is that of x plus the smallest normal
    number, 1.2e-38 in float32, which changes nothing above 1e-30: of zeros, as an embedding has
    them for what does not occur, MKL's takes 25 times as long.
    """
    if not x.requires_grad:
        return (x + min(torch.finfo(x.dtype).tiny, 2**-126)).sqrt_()
    nonzero = x != 0  # not x > 0, which would turn a NaN into 0
    return torch.where(nonzero, torch.where(nonzero, x, 1).sqrt(), 0)
