"""Muon: a step with singular values near 1, for matrices only."""

from typing import Any

import pytest
import torch

from curate.errors import OptimizerError
from curate.rules import Muon, initial_state


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_a_step_has_singular_values_near_one_and_the_gradients_directions(
    shape: tuple[int, int],
) -> None:
    rule = Muon((shape,), nesterov=False, momentum=0.0, weight_decay=0.0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    spectrum = torch.linspace(1.0, 3.0, 4 if 4 in shape else 5, dtype=torch.float64)
    grad = u @ spectrum.diag() @ vh
    theta = torch.zeros(grad.numel(), dtype=torch.float64)
    after = rule.update(grad.flatten(), initial_state(rule, theta), (1.0,))
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    along = u.T @ -after.theta.reshape(shape) / scale @ vh.T
    values = along.diagonal()
    torch.testing.assert_close(along, values.diag(), atol=1e-10, rtol=0)
    assert ((values > 0.65) & (values < 1.25)).all()


def test_the_step_is_adjusted_by_shape() -> None:
    grad = torch.randn(12, dtype=torch.float64)
    steps = {}
    for adjust in ("original", "match_rms_adamw"):
        rule = Muon(((6, 2),), weight_decay=0.0, adjust_lr_fn=adjust)
        state = initial_state(rule, torch.zeros(12, dtype=torch.float64))
        steps[adjust] = rule.update(grad, state, (1.0,)).theta
    torch.testing.assert_close(
        steps["match_rms_adamw"] / (0.2 * 6**0.5), steps["original"] / 3**0.5
    )


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        (((2, 2),), {"eps": 0.0}, "eps must be above 0 but got 0.0"),
        (((2, 2), (3,)), {}, r"has shape \(3,\); give .* another optimizer by `groups`"),
        (((2, 2, 3, 3),), {}, r"Muon is for matrices, .* shape \(2, 2, 3, 3\)"),
        (((2, 2),), {"adjust_lr_fn": "none"}, "must be original or match_rms_adamw but got none"),
    ],
)
def test_settings_out_of_range_are_refused(
    shapes: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptimizerError, match=message):
        Muon(shapes, **settings)
