"""Back through an update alone: in parts, by a rule's own derivative, and by autograd."""

import pytest
import torch

from curate.influence.through_rule import through_rule
from curate.rules import RULES, SGD, Adam, AdamW, Clipped, Grouped, Rule, State, initial_state

SIZE = 37
RULES_TO_TRY: list[Rule] = [
    SGD(momentum=0.9),
    Adam(weight_decay=0.1),
    AdamW(),
    Clipped(AdamW(), 0.5),
    Grouped([Clipped(Adam(weight_decay=0.1), 0.5), SGD(), AdamW()], [5, 20, 12]),
]


def linearized(
    rule: Rule,
) -> tuple[torch.Tensor, State, tuple[float, ...], tuple[torch.Tensor, ...]]:
    """A gradient with zeros in it, a state after two updates, and adjoints of two targets."""
    torch.manual_seed(0)
    lrs = (0.1,) * (len(rule.rules) if isinstance(rule, Grouped) else 1)
    state = initial_state(rule, torch.randn(SIZE, dtype=torch.float64))
    dead = torch.arange(SIZE) % 7 != 0
    for _ in range(2):
        state = rule.update(torch.randn(SIZE, dtype=torch.float64) * dead, state, lrs)
    adjoint = tuple(torch.randn(2, len(t), dtype=torch.float64) for t in state.tensors())
    return torch.randn(SIZE, dtype=torch.float64) * dead, state, lrs, adjoint


@pytest.mark.parametrize("rule", RULES_TO_TRY, ids=str)
def test_is_autograd_of_the_update(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rule's own derivative, and whether in one block or in many."""
    grad, state, lrs, adjoint = linearized(rule)
    inputs = [t.clone().requires_grad_() for t in (grad, *state.tensors())]
    after = rule.update(inputs[0], state.with_tensors(tuple(inputs[1:])), lrs).tensors()
    truth = [
        torch.autograd.grad(after, inputs, [a[q] for a in adjoint], retain_graph=True)
        for q in range(2)
    ]
    for block in (8, 1 << 17):
        monkeypatch.setattr("curate.rules.blocks.CPU_BLOCK", block)
        to_gradient, direct = through_rule(rule, grad, state, lrs, adjoint)
        for k, part in enumerate((to_gradient, *direct)):
            expected = torch.stack([one[k] for one in truth])
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)


def test_what_a_rule_says_of_itself() -> None:
    """An elementwise rule does to a part of the parameters what it does to them among others."""
    for name, make in RULES.items():
        if name in ("adafactor", "muon"):
            assert not make.elementwise
            continue
        rule = make()
        assert rule.elementwise
        grad, state, lrs, _ = linearized(rule)
        half = state.with_tensors(tuple(t[:9] for t in state.tensors()))
        whole, part = rule.update(grad, state, lrs), rule.update(grad[:9], half, lrs)
        for a, b in zip(whole.tensors(), part.tensors(), strict=True):
            torch.testing.assert_close(a[:9], b, rtol=1e-14, atol=0)
