"""States as ordered tensors, vectors as shaped parts, and a square root without infinities."""

import math

import pytest
import torch

from curate.errors import OptimizerError
from curate.rules import State
from curate.rules.base import flatten, refuse_zero_eps, safe_sqrt, unflatten

STATE = State(torch.arange(3.0), {"v": torch.ones(2), "m": torch.zeros(1, dtype=torch.float64)}, 7)


def test_the_tensors_of_a_state_are_theta_and_then_slots_by_name() -> None:
    theta, m, v = STATE.tensors()
    assert (theta is STATE.theta, m is STATE.slots["m"], v is STATE.slots["v"]) == (True,) * 3
    other = STATE.with_tensors((theta + 1, m + 2, v + 3))
    assert other.step == 7
    assert [t.tolist() for t in other.tensors()] == [[1, 2, 3], [2], [4, 4]]
    with pytest.raises(ValueError, match="zip"):
        STATE.with_tensors((theta, m))


def test_a_state_survives_being_saved() -> None:
    back = State.restored(STATE.saved(), torch.device("cpu"))
    assert back.step == 7
    assert back.slots.keys() == STATE.slots.keys()
    assert all(torch.equal(a, b) for a, b in zip(back.tensors(), STATE.tensors(), strict=True))
    assert STATE.nbytes() == 3 * 4 + 2 * 4 + 8


def test_flatten_is_the_inverse_of_unflatten() -> None:
    shapes = ((2, 3), (), (4,), (1, 1, 2))
    vector = torch.arange(13.0)
    parts = unflatten(vector, shapes)
    assert [tuple(part.shape) for part in parts] == list(shapes)
    assert torch.equal(flatten(parts, like=vector), vector)
    assert flatten([], like=vector.double()).dtype == torch.float64


def test_safe_sqrt_has_derivative_zero_at_zero_and_passes_nan_on() -> None:
    x = torch.tensor([0.0, 4.0, math.nan], requires_grad=True)
    root = safe_sqrt(x)
    assert root[:2].tolist() == [0, 2]
    assert root[2].isnan()
    root[:2].sum().backward()
    assert x.grad is not None
    assert x.grad[:2].tolist() == [0, 0.25]
    without = safe_sqrt(x.detach())
    assert float(without[0]) < 1e-18
    assert without[1] == 2
    assert without[2].isnan()


def test_the_square_root_without_a_graph_changes_nothing_that_matters() -> None:
    x = 10 ** torch.linspace(-30, 30, 1001)
    assert torch.equal(safe_sqrt(x), x.sqrt())
    for dtype, low in ((torch.float64, -280), (torch.bfloat16, -30), (torch.float16, -7)):
        x = (10 ** torch.linspace(low, 4, 1001, dtype=torch.float64)).to(dtype)
        assert torch.equal(safe_sqrt(x), x.sqrt())
    for eps in (1e-8, 1e-10):
        assert torch.equal(safe_sqrt(torch.zeros(1)) + eps, torch.tensor([eps]))


@pytest.mark.parametrize("eps", [0.0, -1.0, math.nan])
def test_an_eps_that_is_not_above_zero_is_refused(eps: float) -> None:
    with pytest.raises(OptimizerError, match=f"the eps must be above 0 but got {eps}: without it"):
        refuse_zero_eps(eps, "the eps")
