"""Adam with coupled L2, and AdamW with decoupled weight decay."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.rules.base import Adjoint, Rule, Slots, State, refuse_zero_eps, safe_sqrt


@dataclass(frozen=True)
class Adam(Rule):
    """Adam as in `torch.optim.Adam`: the weight decay joins the gradient (coupled L2).

        g <- g + weight_decay * theta
        m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
        theta <- theta - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Kingma & Ba, arXiv:1412.6980, algorithm 1.
    """

    elementwise = True
    TORCH: ClassVar[type[torch.optim.Optimizer]] = torch.optim.Adam
    SLOTS: ClassVar = {"m": "exp_avg", "v": "exp_avg_sq"}

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        refuse_zero_eps(self.eps)

    def init(self, theta: Tensor) -> Slots:
        return {"m": torch.zeros_like(theta), "v": torch.zeros_like(theta)}

    def decay(self, grad: Tensor, theta: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Where the weight decay enters: returns (gradient, parameters) for the moments."""
        del lr
        return (grad + self.weight_decay * theta if self.weight_decay else grad), theta

    def undecay(self, to_grad: Tensor, to_theta: Tensor, lr: float) -> Tensor:
        """The adjoint of the parameters before `decay`, from the adjoints of its results."""
        del lr
        return torch.add(to_theta, to_grad, alpha=self.weight_decay)

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        (lr,) = lrs
        beta1, beta2 = self.betas
        step = state.step + 1
        grad, theta = self.decay(grad, state.theta, lr)
        m = torch.lerp(state.slots["m"], grad, 1 - beta1)
        v = torch.addcmul(beta2 * state.slots["v"], grad, grad, value=1 - beta2)
        denominator = safe_sqrt(v) / math.sqrt(1 - beta2**step) + self.eps
        theta = torch.addcdiv(theta, m, denominator, value=-lr / (1 - beta1**step))
        return State(theta, {"m": m, "v": v}, step)

    def vjp(
        self, grad: Tensor, state: State, lrs: tuple[float, ...], adjoint: Adjoint
    ) -> tuple[Tensor, Adjoint]:
        """Back through `update` in a fifth of the passes over memory that autograd takes.

        With D the denominator and a the adjoint of what `update` returns,

            a_m <- a_m - lr / (1 - beta1^t) * a_theta / D
            a_v <- a_v + lr / (1 - beta1^t) * a_theta * m / D^2 * dD/dv         (0 where v = 0)
            a_g = (1 - beta1) a_m + 2 (1 - beta2) g a_v

        and beta1 a_m, beta2 a_v go to the moments before.
        """
        (lr,), (beta1, beta2), step = lrs, self.betas, state.step + 1
        correction = math.sqrt(1 - beta2**step)
        to_theta, to_m, to_v = adjoint
        grad, _ = self.decay(grad, state.theta, lr)
        m = torch.lerp(state.slots["m"], grad, 1 - beta1)
        v = torch.addcmul(beta2 * state.slots["v"], grad, grad, value=1 - beta2)
        root = safe_sqrt(v)
        denominator = (root / correction).add_(self.eps)
        down = (to_theta / denominator).mul_(-lr / (1 - beta1**step))
        to_m = to_m + down
        bend = m.div_(denominator.mul_(root)).masked_fill_(v == 0, 0)
        to_v = torch.addcmul(to_v, down, bend, value=-0.5 / correction)
        to_grad = torch.addcmul(to_m * (1 - beta1), to_v, grad, value=2 * (1 - beta2))
        to_theta = self.undecay(to_grad, to_theta, lr)
        return to_grad, (to_theta, to_m.mul_(beta1), to_v.mul_(beta2))


@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW as in `torch.optim.AdamW`: theta <- (1 - lr * weight_decay) theta, then Adam.

    Loshchilov & Hutter, arXiv:1711.05101, algorithm 2.
    """

    TORCH = torch.optim.AdamW

    weight_decay: float = 0.01

    def decay(self, grad: Tensor, theta: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        return grad, theta * (1 - lr * self.weight_decay) if self.weight_decay else theta

    def undecay(self, to_grad: Tensor, to_theta: Tensor, lr: float) -> Tensor:
        del to_grad
        return to_theta * (1 - lr * self.weight_decay)
