"""Rules made of rules: gradient clipping in front, param groups side by side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curate.rules.base import Rule, Slots, State
from curate.rules.sgd import SGD


@dataclass(frozen=True)
class Clipped(Rule):
    """Clip the gradient's global norm, then update: `torch.nn.utils.clip_grad_norm_`.

        g <- g * min(1, max_norm / (|g| + 1e-6))

    The clip is part of the rule and is differentiated with it.
    """

    elementwise = False

    rule: Rule
    max_norm: float

    def init(self, theta: Tensor) -> Slots:
        return self.rule.init(theta)

    def clip(self, grad: Tensor) -> Tensor:
        """The gradient, shape (P,), scaled down to `max_norm` where it is longer."""
        norm = torch.linalg.vector_norm(grad)  # its derivative at 0 is defined as 0
        clipped: Tensor = grad * (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        return clipped

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        return self.rule.update(self.clip(grad), state, lrs)


@dataclass(frozen=True)
class Grouped(Rule):
    """One rule per param group; group k owns `sizes[k]` consecutive entries of theta."""

    elementwise = False

    rules: Sequence[Rule]
    sizes: Sequence[int]

    def init(self, theta: Tensor) -> Slots:
        return {
            f"{k}/{name}": slot
            for k, (rule, part) in enumerate(zip(self.rules, theta.split(self.sizes), strict=True))
            for name, slot in rule.init(part).items()
        }

    def split(
        self, grad: Tensor, state: State, lrs: tuple[float, ...]
    ) -> Iterator[tuple[Rule, Tensor, State, tuple[float, ...]]]:
        """For every group its rule and its part of the arguments of `update`."""
        parts = zip(
            self.rules, grad.split(self.sizes), state.theta.split(self.sizes), lrs, strict=True
        )
        for k, (rule, group_grad, theta, lr) in enumerate(parts):
            slots = {
                name.removeprefix(f"{k}/"): slot
                for name, slot in state.slots.items()
                if name.startswith(f"{k}/")
            }
            yield rule, group_grad, State(theta, slots, state.step), (lr,)

    def joined(self, groups: Sequence[State]) -> State:
        """The state that is made of those of all groups."""
        slots = {
            f"{k}/{name}": slot
            for k, group in enumerate(groups)
            for name, slot in group.slots.items()
        }
        return State(torch.cat([group.theta for group in groups]), slots, groups[0].step)

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        return self.joined(
            [rule.update(g, s, lr) for rule, g, s, lr in self.split(grad, state, lrs)]
        )


def as_sgd(rule: Rule) -> Rule:
    """The rule with plain SGD in place of every optimizer; clipping and param groups stay.

    Most influence scores assume it, whatever the model was trained with.
    """
    if isinstance(rule, Clipped):
        return Clipped(as_sgd(rule.rule), rule.max_norm)
    if isinstance(rule, Grouped):
        return Grouped(tuple(as_sgd(part) for part in rule.rules), rule.sizes)
    return SGD()
