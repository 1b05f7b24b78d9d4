"""Every rule against torch.optim, in float64, and against finite differences."""

from typing import Any

import pytest
import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules import (
    RULES,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Clipped,
    Grouped,
    RMSprop,
    Rule,
    State,
    initial_state,
)
from curate.rules.schedules import DECAYS, Schedule
from tests import tiny

LIBRARY: dict[Any, Any] = {
    SGD: torch.optim.SGD, Adam: torch.optim.Adam, AdamW: torch.optim.AdamW,
    RMSprop: torch.optim.RMSprop, Adagrad: torch.optim.Adagrad,
}  # fmt: skip


def library_settings(rule: Rule) -> dict[str, object]:
    return {**vars(rule)}


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", tiny.RULES)
def test_forward_parity_with_torch_optim(name: str, grouped: bool, clip: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = (7, 5)
    start = [torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes]
    parameters = [p.clone().requires_grad_() for p in start]
    rule, lrs = tiny.rule_for(name, sizes if grouped else None, clip)
    inner = tiny.RULES[name]
    kind = type(inner)
    groups = [{"params": [parameters[0]], "lr": lrs[0], **library_settings(inner)}]
    if grouped:
        groups.append({"params": [parameters[1]], "lr": lrs[1], **library_settings(kind())})
    else:
        groups[0]["params"] = parameters
    optimizer = LIBRARY[kind](groups, lr=1.0)  # type: ignore[arg-type]
    state = initial_state(rule, torch.cat(start))
    for t in range(25):
        gradients = [torch.randn(n, generator=generator, dtype=torch.float64) for n in sizes]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        factor = 1 - t / 30
        for group, lr in zip(optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr * factor
        optimizer.step()
        state = rule.update(torch.cat(gradients), state, tuple(lr * factor for lr in lrs))
    theirs = torch.cat([p.detach() for p in parameters])
    assert (state.theta - theirs).abs().max() <= 1e-12
    assert state.step == 25


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("name", tiny.RULES)
def test_derivative_of_update_equals_finite_differences(name: str, clip: float | None) -> None:
    rule, lrs = tiny.rule_for(name, clip=clip)
    theta = torch.randn(6, dtype=torch.float64)
    state = initial_state(rule, theta)
    for _ in range(3):  # away from the zero moments of the start
        state = rule.update(torch.randn(6, dtype=torch.float64), state, lrs)
    grad = torch.randn(6, dtype=torch.float64).requires_grad_()
    tensors = tuple(t.clone().requires_grad_() for t in state.tensors())

    def update(grad: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        return rule.update(grad, state.with_tensors(parts), lrs).tensors()

    assert torch.autograd.gradcheck(update, (grad, *tensors), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", tiny.RULES)
def test_update_changes_nothing_it_is_given(name: str) -> None:
    rule, lrs = tiny.rule_for(name, clip=0.1)
    state = initial_state(rule, torch.randn(6, dtype=torch.float64))
    state = rule.update(torch.randn(6, dtype=torch.float64), state, lrs)
    grad = torch.randn(6, dtype=torch.float64)
    before = [t.clone() for t in (grad, *state.tensors())]
    rule.update(grad, state, lrs)
    assert all(torch.equal(a, b) for a, b in zip(before, (grad, *state.tensors()), strict=True))


def test_every_listed_rule_is_in_the_table() -> None:
    assert {type(rule) for rule in tiny.RULES.values()} == set(RULES.values())


def test_zero_gradient_has_zero_derivative_of_the_root_and_the_clip() -> None:
    rule = Clipped(AdamW(weight_decay=0.0), 1.0)
    theta = torch.ones(3, dtype=torch.float64).requires_grad_()
    grad = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    after = rule.update(grad, State(theta, rule.init(theta), 0), (0.1,))
    found = torch.autograd.grad(after.theta.sum(), [grad, theta])
    assert all(part.isfinite().all() for part in found)
    torch.testing.assert_close(after.theta, theta)


@pytest.mark.parametrize("kind", [Adam, RMSprop, Adagrad])
def test_eps_zero_is_refused(kind: Any) -> None:
    with pytest.raises(OptimizerError, match="eps must be above 0 but got 0"):
        kind(eps=0.0)


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(OptimizerError, match="nesterov needs a momentum above 0"):
        SGD(nesterov=True)


def test_groups_may_have_different_slots() -> None:
    rule = Grouped((SGD(), SGD(momentum=0.9)), (2, 3))
    state = initial_state(rule, torch.ones(5))
    assert set(state.slots) == {"1/momentum"}
    after = rule.update(torch.ones(5), state, (0.1, 0.2))
    torch.testing.assert_close(after.theta, torch.tensor([0.9, 0.9, 0.8, 0.8, 0.8]))


@pytest.mark.parametrize("kind", DECAYS)
def test_schedules_warm_up_and_decay(kind: str) -> None:
    schedule = Schedule(kind, warmup_steps=4)
    values = [schedule.multiplier(t, 20) for t in range(20)]
    assert values[:5] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert values[4:] == sorted(values[4:], reverse=True)
    assert values[-1] > 0


def test_schedules_match_their_closed_forms() -> None:
    assert Schedule("linear").multiplier(15, 20) == pytest.approx(0.25)
    assert Schedule("cosine").multiplier(5, 20) == pytest.approx(0.5 * (1 + 2**0.5 / 2))
    assert Schedule("constant").multiplier(19, 20) == 1.0
