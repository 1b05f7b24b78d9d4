"""Adam and AdamW by hand: where the weight decay enters."""

import pytest
import torch

from curate.errors import OptimizerError
from curate.rules import Adam, AdamW, Clipped, initial_state


def test_the_first_step_has_the_length_of_the_learning_rate() -> None:
    theta, grad = torch.zeros(3, dtype=torch.float64), torch.tensor([5.0, -0.1, 1e-3]).double()
    after = Adam(eps=1e-12).update(grad, initial_state(Adam(), theta), (0.1,))
    torch.testing.assert_close(after.theta, -0.1 * grad.sign(), rtol=1e-8, atol=0)


def test_decay_is_in_the_moments_of_adam_and_not_of_adamw() -> None:
    theta, grad = torch.full((2,), 10.0, dtype=torch.float64), torch.zeros(2).double()
    coupled = Adam(weight_decay=0.1).update(grad, initial_state(Adam(), theta), (0.01,))
    assert coupled.slots["m"].tolist() == pytest.approx([0.1, 0.1])
    assert coupled.theta.tolist() == pytest.approx([9.99, 9.99])
    decoupled = AdamW(weight_decay=0.1).update(grad, initial_state(AdamW(), theta), (0.01,))
    assert decoupled.slots["m"].tolist() == [0, 0]
    assert decoupled.theta.tolist() == pytest.approx([9.99, 9.99])


def test_zero_gradient_moves_nothing() -> None:
    rule = Clipped(AdamW(weight_decay=0.0), 1.0)
    after = rule.update(torch.zeros(3), initial_state(rule, torch.ones(3)), (0.1,))
    torch.testing.assert_close(after.theta, torch.ones(3))


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_its_own_derivative_is_autograds(kind: type[Adam]) -> None:
    """With a moment that is exactly 0, where the root's derivative is taken as 0."""
    rule, lrs = kind(weight_decay=0.1), (0.05,)
    alive = (torch.arange(6) != 2).double()
    state = initial_state(rule, torch.randn(6, dtype=torch.float64) * alive)
    for _ in range(2):
        state = rule.update(torch.randn(6, dtype=torch.float64) * alive, state, lrs)
    grad = torch.randn(6, dtype=torch.float64) * alive
    adjoint = tuple(torch.randn(1, 6, dtype=torch.float64) for _ in state.tensors())
    inputs = [t.clone().requires_grad_() for t in (grad, *state.tensors())]
    after = rule.update(inputs[0], state.with_tensors(tuple(inputs[1:])), lrs).tensors()
    truth = torch.autograd.grad(after, inputs, [a[0] for a in adjoint])
    to_grad, before = rule.vjp(grad, state, lrs, adjoint)
    for expected, part in zip(truth, (to_grad, *before), strict=True):
        torch.testing.assert_close(part[0], expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_eps_zero_is_refused(kind: type[Adam]) -> None:
    with pytest.raises(OptimizerError, match="eps must be above 0 but got 0"):
        kind(eps=0.0)
