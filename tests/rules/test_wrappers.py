"""Clipping in front of a rule, and rules side by side."""

import torch

from curate.rules import SGD, AdamW, Clipped, Grouped, Rule, as_sgd, initial_state


def test_a_long_gradient_is_scaled_to_the_norm_and_a_short_one_left() -> None:
    rule = Clipped(SGD(), 2.5)
    long, short = torch.tensor([3.0, 4.0]).double(), torch.tensor([0.3, 0.4]).double()
    torch.testing.assert_close(rule.clip(long), long / 2, rtol=1e-6, atol=0)
    assert torch.equal(rule.clip(short), short)
    after = rule.update(long, initial_state(rule, torch.zeros(2).double()), (1.0,))
    assert torch.equal(after.theta, -rule.clip(long))


def test_groups_may_have_different_slots_and_learning_rates() -> None:
    rule = Grouped((SGD(), SGD(momentum=0.9)), (2, 3))
    state = initial_state(rule, torch.ones(5))
    assert set(state.slots) == {"1/momentum"}
    after = rule.update(torch.ones(5), state, (0.1, 0.2))
    torch.testing.assert_close(after.theta, torch.tensor([0.9, 0.9, 0.8, 0.8, 0.8]))
    assert after.step == 1


def test_groups_are_as_if_each_trained_alone() -> None:
    rules, sizes, lrs = (AdamW(), SGD(momentum=0.9), AdamW(eps=0.1)), (2, 3, 4), (0.1, 0.2, 0.3)
    theta = torch.randn(9, dtype=torch.float64)
    together = initial_state(Grouped(rules, sizes), theta)
    apart = [initial_state(r, part) for r, part in zip(rules, theta.split(sizes), strict=True)]
    for _ in range(3):
        grad = torch.randn(9, dtype=torch.float64)
        together = Grouped(rules, sizes).update(grad, together, lrs)
        apart = [
            rule.update(part, state, (lr,))
            for rule, part, state, lr in zip(rules, grad.split(sizes), apart, lrs, strict=True)
        ]
    assert torch.equal(together.theta, torch.cat([state.theta for state in apart]))
    for k, state in enumerate(apart):
        for name, slot in state.slots.items():
            assert torch.equal(together.slots[f"{k}/{name}"], slot)


def test_as_sgd_keeps_clipping_and_groups_and_nothing_else() -> None:
    rule: Rule = Clipped(Grouped((AdamW(), SGD(momentum=0.9, weight_decay=0.1)), (3, 2)), 0.5)
    assert as_sgd(rule) == Clipped(Grouped((SGD(), SGD()), (3, 2)), 0.5)
