"""Adagrad: every parameter's steps shrink with the gradients it has seen."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.rules.base import Rule, Slots, State, refuse_zero_eps, safe_sqrt


@dataclass(frozen=True)
class Adagrad(Rule):
    """Adagrad as in `torch.optim.Adagrad`.

        g <- g + weight_decay * theta
        s <- s + g^2                                 s = initial_accumulator_value at first
        theta <- theta - lr / (1 + t lr_decay) * g / (sqrt(s) + eps)      t = 0 at first

    Duchi, Hazan & Singer, JMLR 12 (2011).
    """

    elementwise = True
    TORCH = torch.optim.Adagrad
    SLOTS: ClassVar = {"sum": "sum"}

    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10

    def __post_init__(self) -> None:
        refuse_zero_eps(self.eps)

    def init(self, theta: Tensor) -> Slots:
        return {"sum": torch.full_like(theta, self.initial_accumulator_value)}

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        (lr,) = lrs
        if self.weight_decay:
            grad = grad + self.weight_decay * state.theta
        total = torch.addcmul(state.slots["sum"], grad, grad)
        rate = lr / (1 + state.step * self.lr_decay)
        theta = torch.addcdiv(state.theta, grad, safe_sqrt(total) + self.eps, value=-rate)
        return State(theta, {"sum": total}, state.step + 1)
