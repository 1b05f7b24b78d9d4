"""Stochastic gradient descent, with momentum, dampening and Nesterov."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules.base import Rule, Slots, State


@dataclass(frozen=True)
class SGD(Rule):
    """SGD as in `torch.optim.SGD`.

    g  <- g + weight_decay * theta
    b  <- momentum * b + (1 - dampening) * g      (b <- g at the first step)
    g  <- g + momentum * b  if nesterov else  b
    theta <- theta - lr * g
    """

    elementwise = True
    TORCH = torch.optim.SGD
    SLOTS: ClassVar = {"momentum": "momentum_buffer"}

    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise OptimizerError(
                "nesterov needs a momentum above 0 and a dampening of 0 but got "
                f"momentum {self.momentum} and dampening {self.dampening}."
            )

    def init(self, theta: Tensor) -> Slots:
        return {"momentum": torch.zeros_like(theta)} if self.momentum else {}

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        (lr,) = lrs
        theta, slots = state.theta, {}
        if self.weight_decay:
            grad = grad + self.weight_decay * theta
        if self.momentum:
            buffer = grad
            if state.step > 0:
                buffer = self.momentum * state.slots["momentum"] + (1 - self.dampening) * grad
            slots["momentum"] = buffer
            grad = grad + self.momentum * buffer if self.nesterov else buffer
        return State(torch.add(theta, grad, alpha=-lr), slots, state.step + 1)
