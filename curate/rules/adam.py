"""Adam with coupled L2, and AdamW with decoupled weight decay."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules.base import Slots, State, safe_sqrt


@dataclass(frozen=True)
class Adam:
    """Adam as in `torch.optim.Adam`: the weight decay joins the gradient (coupled L2).

        g <- g + weight_decay * theta
        m <- beta1 m + (1 - beta1) g,   v <- beta2 v + (1 - beta2) g^2
        theta <- theta - lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)

    Kingma & Ba, arXiv:1412.6980, algorithm 1.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise OptimizerError(
                f"eps must be above 0 but got {self.eps}: without it the update has no "
                "derivative where a gradient is 0."
            )

    def init(self, theta: Tensor) -> Slots:
        return {"m": torch.zeros_like(theta), "v": torch.zeros_like(theta)}

    def decay(self, grad: Tensor, theta: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        """Where the weight decay enters: returns (gradient, parameters) for the moments."""
        del lr
        return (grad + self.weight_decay * theta if self.weight_decay else grad), theta

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


@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW as in `torch.optim.AdamW`: theta <- (1 - lr * weight_decay) theta, then Adam.

    Loshchilov & Hutter, arXiv:1711.05101, algorithm 2.
    """

    weight_decay: float = 0.01

    def decay(self, grad: Tensor, theta: Tensor, lr: float) -> tuple[Tensor, Tensor]:
        return grad, theta * (1 - lr * self.weight_decay) if self.weight_decay else theta
