"""RMSprop, plain or centered, with or without momentum."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.rules.base import Rule, Slots, State, refuse_zero_eps, safe_sqrt


@dataclass(frozen=True)
class RMSprop(Rule):
    """RMSprop as in `torch.optim.RMSprop`.

        g <- g + weight_decay * theta
        v <- alpha v + (1 - alpha) g^2,   a <- alpha a + (1 - alpha) g   if centered
        u <- g / (sqrt(v - a^2) + eps)                                   a = 0 if not
        b <- momentum b + u
        theta <- theta - lr * b                                          b = u without momentum

    Tieleman & Hinton, Coursera lecture 6.5, 2012; centered: Graves, arXiv:1308.0850.
    """

    elementwise = True
    TORCH = torch.optim.RMSprop
    SLOTS: ClassVar = {"v": "square_avg", "average": "grad_avg", "momentum": "momentum_buffer"}

    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        refuse_zero_eps(self.eps)

    def init(self, theta: Tensor) -> Slots:
        names = ["v", *["average"] * self.centered, *["momentum"] * (self.momentum > 0)]
        return {name: torch.zeros_like(theta) for name in names}

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        (lr,) = lrs
        if self.weight_decay:
            grad = grad + self.weight_decay * state.theta
        spread = torch.addcmul(self.alpha * state.slots["v"], grad, grad, value=1 - self.alpha)
        slots = {"v": spread}
        if self.centered:
            slots["average"] = torch.lerp(state.slots["average"], grad, 1 - self.alpha)
            spread = spread - slots["average"].square()
        step = grad / (safe_sqrt(spread) + self.eps)
        if self.momentum > 0:
            step = slots["momentum"] = self.momentum * state.slots["momentum"] + step
        return State(torch.add(state.theta, step, alpha=-lr), slots, state.step + 1)
