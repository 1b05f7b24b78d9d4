"""Adafactor: a second moment kept as one row and one column per matrix."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from curate.rules.base import Rule, Shapes, Slots, State, flatten, refuse_zero_eps, unflatten


@dataclass(frozen=True)
class Adafactor(Rule):
    """Adafactor as in `torch.optim.Adafactor`, parameter by parameter.

        f = t^beta2_decay                                      t = 1 at first
        r <- (1 - f) r + f mean_columns g^2,   c <- (1 - f) c + f mean_rows g^2
        v = r c / max(mean r, eps1)                            for two dimensions or more
        v <- (1 - f) v + f g^2                                 for fewer
        u = g / max(sqrt(v), eps1)
        u <- u / max(1, rms(u) / d)
        a = max(eps2, rms(theta)) min(lr, 1 / sqrt(t))
        theta <- (1 - lr * weight_decay) theta - a u

    In more than two dimensions the last two are the matrix. Shazeer & Stern,
    arXiv:1804.04235, algorithms 4 to 6, with eps1 where torch has it.

    Args:
        shapes: of the parameters that theta is made of.
        eps: (eps1, eps2). torch's eps1 of None is the eps of the parameters' dtype;
            here it is a number (by default that of float32), so that a step repeated
            in another dtype is the same step.

    Raises:
        OptimizerError: eps1 is not above 0.
    """

    elementwise = False
    TORCH = torch.optim.Adafactor
    SLOTS: ClassVar = {"rows": "row_var", "columns": "col_var", "v": "variance"}

    shapes: Shapes
    beta2_decay: float = -0.8
    eps: tuple[float, float] = (torch.finfo(torch.float32).eps, 1e-3)
    d: float = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        refuse_zero_eps(self.eps[0], "the first eps")

    def init(self, theta: Tensor) -> Slots:
        return {
            name: flatten([theta.new_zeros(shape) for shape in shapes], like=theta)
            for name, shapes in self._slot_shapes().items()
        }

    def update(self, grad: Tensor, state: State, lrs: tuple[float, ...]) -> State:
        (lr,) = lrs
        step = state.step + 1
        eps1, eps2 = self.eps
        shapes = self._slot_shapes()
        before = {name: iter(unflatten(state.slots[name], shapes[name])) for name in shapes}
        after: dict[str, list[Tensor]] = {name: [] for name in shapes}

        def average(name: str, square: Tensor) -> Tensor:
            """The parameter's moment in slot `name`, updated by `square`."""
            moment = torch.lerp(next(before[name]), square, step**self.beta2_decay)
            after[name].append(moment)
            return moment

        thetas = []
        for theta, g in zip(
            unflatten(state.theta, self.shapes), unflatten(grad, self.shapes), strict=True
        ):
            square = g.square()
            if g.dim() > 1:
                rows = average("rows", square.mean(-1, keepdim=True))
                columns = average("columns", square.mean(-2, keepdim=True))
                v = rows @ columns / rows.mean(-2, keepdim=True).clamp(min=eps1)
            else:
                v = average("v", square)
            u = g * v.clamp(min=eps1**2).rsqrt()  # the clamp's derivative below it is 0
            u = u / (_rms(u) / self.d).clamp(min=1)
            rate = _rms(theta).clamp(min=eps2) * min(lr, step**-0.5)
            thetas.append(theta * (1 - lr * self.weight_decay) - rate * u)
        slots = {name: flatten(moments, like=grad) for name, moments in after.items()}
        return State(flatten(thetas, like=grad), slots, step)

    def _slot_shapes(self) -> dict[str, Shapes]:
        """Shapes of the moments, parameter by parameter, for every slot that is not empty."""
        factored = [shape for shape in self.shapes if len(shape) > 1]
        shapes: dict[str, Shapes] = {
            "rows": tuple((*shape[:-1], 1) for shape in factored),
            "columns": tuple((*shape[:-2], 1, shape[-1]) for shape in factored),
            "v": tuple(shape for shape in self.shapes if len(shape) <= 1),
        }
        return {name: slot_shapes for name, slot_shapes in shapes.items() if slot_shapes}


def _rms(x: Tensor) -> Tensor:
    rms: Tensor = torch.linalg.vector_norm(x) / x.numel() ** 0.5  # derivative 0 at 0
    return rms
