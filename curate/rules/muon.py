"""Muon: momentum made orthogonal, matrix by matrix."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules.base import Shape, Shapes, Slots, State, flatten, unflatten

ADJUSTMENTS: MappingProxyType[str, Callable[[int, int], float]] = MappingProxyType(
    {
        "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
        "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    }
)


@dataclass(frozen=True)
class Muon:
    """Muon as in `torch.optim.Muon`, for parameters that are matrices.

        b <- momentum b + (1 - momentum) g
        u <- (1 - momentum) g + momentum b  if nesterov else  b
        x <- u / max(|u|_F, eps)                               transposed if it is tall
        x <- a x + (b x x' + c (x x')^2) x                     ns_steps times; a, b, c
                                                               are the ns_coefficients
        theta <- (1 - lr * weight_decay) theta - lr * adjust(shape) * x
        adjust: sqrt(max(1, rows / columns))  if original,
                0.2 sqrt(max(rows, columns))  if match_rms_adamw

    torch does the iteration in bfloat16 whatever the parameters are in; here it
    is in their own dtype, since a derivative through bfloat16 is noise. The
    parameters differ by bfloat16's rounding of the step.

    Jordan et al., kellerjordan.github.io/posts/muon, 2024; match_rms_adamw:
    Liu et al., arXiv:2502.16982, equation 4.

    Args:
        shapes: of the parameters that theta is made of, all of two dimensions.

    Raises:
        OptimizerError: a parameter is no matrix, or a setting is out of range.
    """

    elementwise: ClassVar[bool] = False
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
        if not self.eps > 0:
            raise OptimizerError(
                f"eps must be above 0 but got {self.eps}: without it the update is undefined "
                "where a gradient is 0."
            )
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
        step = flatten(
            [
                self._adjustment(shape) * self._orthogonal(matrix)
                for shape, matrix in zip(
                    self.shapes, unflatten(direction, self.shapes), strict=True
                )
            ],
            like=grad,
        )
        theta = torch.add(state.theta * (1 - lr * self.weight_decay), step, alpha=-lr)
        return State(theta, {"momentum": momentum}, state.step + 1)

    def _adjustment(self, shape: Shape) -> float:
        rows, columns = shape
        return ADJUSTMENTS[self.adjust_lr_fn](rows, columns)

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
