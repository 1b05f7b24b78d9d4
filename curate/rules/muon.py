"""Muon: momentum made orthogonal, matrix by matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules.base import Rule, Shapes, Slots, State, flatten, refuse_zero_eps, unflatten

ADJUSTMENTS: MappingProxyType[str, Callable[[int, int], float]] = MappingProxyType(
    {
        "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
        "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    }
)


@dataclass(frozen=True)
class Muon(Rule):
    """Muon as in `torch.optim.Muon`, for parameters that are matrices.

        b <- momentum b + (1 - momentum) g
        u <- (1 - momentum) g + momentum b  if nesterov else  b
        x <- u / max(|u|_F, eps)                               transposed if it is tall
        x <- a x + (b x x' + c (x x')^2) x                     ns_steps times; a, b, c
                                                               are the ns_coefficients
        theta <- (1 - lr * weight_decay) theta - lr * adjust(shape) * x
        adjust: sqrt(max(1, rows / columns))  if original,
                0.2 sqrt(max(rows, columns))  if match_rms_adamw

    torch iterates in bfloat16 whatever the dtype of the parameters; here the iteration is in
    their dtype, since a derivative through bfloat16 is noise. The parameters differ by
    bfloat16's rounding of the step, so a live one is not read: `TORCH` stays None.

    Jordan et al., kellerjordan.github.io/posts/muon, 2024; match_rms_adamw:
    Liu et al., arXiv:2502.16982, equation 4.

    Args:
        shapes: of the parameters that theta is made of, all of two dimensions.

    Raises:
        OptimizerError: a parameter is not a matrix, or a setting is out of range.
    """

    elementwise = False

    shapes: Shapes
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.1
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    ns_steps: int = 5
    eps: float = 1e-7
    adjust_lr_fn: str = "original"

    def __post_init__(self) -> None:
        for shape in self.shapes:
            if len(shape) != 2:
                raise OptimizerError(
                    f"Muon is for matrices, but a parameter has shape {tuple(shape)}; give such "
                    "parameters to another optimizer by `groups`."
                )
        refuse_zero_eps(self.eps)
        if self.adjust_lr_fn not in ADJUSTMENTS:
            raise OptimizerError(
                f"adjust_lr_fn must be {' or '.join(ADJUSTMENTS)} but got {self.adjust_lr_fn}."
            )

    def init(self, theta: Tensor) -> Slots:
        return {"momentum": torch.zeros_like(theta)}

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        (lr,) = lrs
        momentum = torch.lerp(state.slots["momentum"], grad, 1 - self.momentum)
        direction = torch.lerp(grad, momentum, self.momentum) if self.nesterov else momentum
        adjust = ADJUSTMENTS[self.adjust_lr_fn]
        matrices = unflatten(direction, self.shapes)
        steps = [adjust(*matrix.shape) * self._orthogonal(matrix) for matrix in matrices]
        step = flatten(steps, like=grad)
        theta = torch.add(state.theta * (1 - lr * self.weight_decay), step, alpha=-lr)
        return State(theta, {"momentum": momentum}, state.step + 1)

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        """Newton-Schulz: the matrix with its singular values brought near 1."""
        a, b, c = self.ns_coefficients
        tall = matrix.shape[0] > matrix.shape[1]
        norm = torch.linalg.vector_norm(matrix)  # its derivative at 0 is defined as 0
        x: Tensor = (matrix.T if tall else matrix) / norm.clamp(min=self.eps)
        for _ in range(self.ns_steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x
