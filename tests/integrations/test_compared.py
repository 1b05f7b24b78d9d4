"""What one step shows of a loop, by steps made by hand."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from curate.errors import SimulationError
from curate.integrations.compared import Real, require_gradient, require_update, surely_within

WEIGHTS = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
GRADIENT = {"a": torch.tensor([0.3, -0.4]), "b": torch.tensor([1.2])}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1.0, 1e30])
@pytest.mark.parametrize("off", [0.0, 0.4, 0.6, 1.1, 3.0])
def test_a_quick_look_never_passes_what_a_close_one_would_not(
    dtype: torch.dtype, scale: float, off: float
) -> None:
    one = (scale * torch.linspace(-1, 1, 1001)).to(dtype)
    other = one + (off * 1e-2 * scale * torch.linspace(1, -1, 1001)).to(dtype)
    limit = 1e-2 * float(one.norm())
    apart = float((one.double() - other.double()).norm())
    surely = surely_within(limit, one, other)
    assert not surely or apart <= 1e-2 * float(one.double().norm())
    if dtype == torch.float32 and scale == 1.0:
        assert surely == (off < 0.5)


def test_steps_too_small_for_single_precision_are_compared() -> None:
    """A layer that starts at 0 has no rounding of its own to hide behind."""
    zero = {"a": torch.zeros(3)}
    real = Real("step 7", zero, {"a": torch.ones(3)}, [1e-30], [1e-30])
    moved = {"a": torch.full((3,), -1e-30)}
    require_update(real, moved, moved)
    with pytest.raises(SimulationError, match="the update moves a by 0 where"):
        require_update(real, zero, moved)
    require_gradient(real._replace(gradients=moved), moved, None)
    with pytest.raises(SimulationError, match="is not that of the objective: it differs by"):
        require_gradient(real._replace(gradients=moved), {"a": -moved["a"]}, None)


@dataclass
class Seen:
    """A step of plain SGD with a learning rate of .1, of which parts can be changed."""

    gradients: dict[str, Tensor | None] = field(default_factory=lambda: dict(GRADIENT))
    moved: dict[str, float] = field(default_factory=dict)
    rate: float = 0.1

    def real(self) -> Real:
        return Real("step 7", WEIGHTS, self.gradients, [self.rate], [0.1])

    def after(self) -> dict[str, Tensor]:
        return {
            name: w - 0.1 * GRADIENT[name] * self.moved.get(name, 1.0)
            for name, w in WEIGHTS.items()
        }


EXPECTED = {name: w - 0.1 * GRADIENT[name] for name, w in WEIGHTS.items()}


def test_what_is_the_same_passes() -> None:
    require_gradient(Seen().real(), GRADIENT, None)
    require_update(Seen().real(), Seen().after(), EXPECTED)
    rounded = {name: grad * (1 + 1e-4) for name, grad in GRADIENT.items()}
    require_gradient(Seen().real(), rounded, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_tolerance_is_that_of_the_passes(dtype: torch.dtype) -> None:
    allowed = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]
    for factor, refused in ((0.5, False), (2.0, True)):
        simulated = {
            name: (grad.double() * (1 + factor * allowed)).to(
                torch.float64 if dtype == torch.float64 else torch.float32
            )
            for name, grad in GRADIENT.items()
        }
        passes = torch.bfloat16 if dtype == torch.bfloat16 else None
        if refused:
            with pytest.raises(SimulationError, match="step 7: the gradient that the loop trains"):
                require_gradient(Seen().real(), simulated, passes)
        else:
            require_gradient(Seen().real(), simulated, passes)


def test_a_parameter_that_is_hardly_moved_may_be_noise() -> None:
    tiny = {"a": torch.tensor([1e-9, 1e-9]), "b": GRADIENT["b"]}
    noise = {"a": torch.tensor([-1e-9, 2e-9]), "b": GRADIENT["b"]}
    require_gradient(Seen(gradients=dict(tiny)).real(), noise, None)


@pytest.mark.parametrize(
    ("seen", "expected", "message"),
    [
        (Seen(rate=0.2), EXPECTED, "learning rate of 0.2 where 0.1 was foreseen"),
        (Seen(moved={"a": 2.0}), EXPECTED, "moves a by 0.1 where the optimizer's rule moves it by"),
        (
            Seen(gradients={"a": GRADIENT["a"], "b": None}, moved={"b": 0.0}),
            EXPECTED,
            "the loss of the batch does not use b",
        ),
        (Seen(), {"a": EXPECTED["a"]}, "moves b, which had not been trained while others were"),
    ],
)
def test_what_differs_is_named(seen: Seen, expected: dict[str, Tensor], message: str) -> None:
    with pytest.raises(SimulationError, match=f"step 7: .*{message}"):
        require_update(seen.real(), seen.after(), expected)
