"""Every rule against torch.optim, in float64, and against finite differences."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from curate.errors import OptimizerError
from curate.rules import (
    RULES,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Clipped,
    Grouped,
    Muon,
    RMSprop,
    Rule,
    Shapes,
    initial_state,
)
from curate.rules.schedules import DECAYS, Schedule
from tests import tiny

LIBRARY: dict[Any, Any] = {
    SGD: torch.optim.SGD, Adam: torch.optim.Adam, AdamW: torch.optim.AdamW,
    RMSprop: torch.optim.RMSprop, Adagrad: torch.optim.Adagrad,
    Adafactor: torch.optim.Adafactor, Muon: torch.optim.Muon,
}  # fmt: skip
GROUPS: tuple[Shapes, ...] = (((5, 3), (4,), (2, 2, 3), ()), ((2, 6), (5,)))


def library_settings(rule: Rule) -> dict[str, object]:
    return {name: value for name, value in vars(rule).items() if name != "shapes"}


def shapes_for(name: str, groups: tuple[Shapes, ...] = GROUPS) -> tuple[Shapes, ...]:
    """What `torch.optim` lets this optimizer have: Muon takes matrices."""
    matrices = isinstance(tiny.RULES[name], Muon)
    return tuple(tuple(s for s in shapes if len(s) == 2 or not matrices) for shapes in groups)


def far_from_torch(
    name: str, groups: tuple[Shapes, ...], clip: float | None = None, raise_lr: float = 1.0
) -> float:
    """The largest difference between our parameters and torch's after 25 steps."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> list[Tensor]:
        shapes = [shape for group in groups for shape in group]
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    parameters = [p.requires_grad_() for p in draw()]
    rule, lrs = tiny.rule_for(name, groups, clip)
    state = initial_state(rule, flat(parameters))
    members = iter(parameters)
    inner, kind = tiny.RULES[name], type(tiny.RULES[name])
    each = [inner, tiny.shaped(inner, (), default=True)]
    optimizer = LIBRARY[kind](
        [
            {"params": [next(members) for _ in shapes], **library_settings(rule_k)}
            for shapes, rule_k in zip(groups, each, strict=False)
        ],
        lr=1.0,
    )
    for t in range(25):
        gradients = draw()
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        now = tuple(lr * raise_lr * (1 - t / 30) for lr in lrs)
        for group, lr in zip(optimizer.param_groups, now, strict=True):
            group["lr"] = lr
        optimizer.step()
        state = rule.update(flat(gradients), state, now)
    assert state.step == 25
    return float((state.theta - flat(parameters)).abs().max())


def flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().reshape(-1) for part in parts])


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("name", tiny.RULES)
def test_forward_parity_with_torch_optim(
    name: str, grouped: bool, clip: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(tiny.RULES[name], Muon):  # torch's own, without its cast
        monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)
    assert far_from_torch(name, shapes_for(name)[: 1 + grouped], clip) <= 1e-12


@pytest.mark.parametrize("name", ["muon", "muon-heavy"])
def test_muon_is_torchs_but_for_bfloat16(name: str) -> None:
    """25 entries of at most about 0.05, each wrong by a few times bfloat16's 2^-8."""
    assert 1e-6 < far_from_torch(name, shapes_for(name)) < 0.01


@pytest.mark.parametrize("name", ["adafactor", "adafactor-slow"])
def test_adafactor_steps_are_at_most_one_over_root_t(name: str) -> None:
    assert far_from_torch(name, GROUPS, raise_lr=20.0) <= 1e-12  # lr 1 and 0.4


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("name", tiny.RULES)
def test_derivative_of_update_equals_finite_differences(name: str, clip: float | None) -> None:
    rule, lrs = tiny.rule_for(name, (((2, 2), (2,)),), clip)
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
    rule, lrs = tiny.rule_for(name, (((2, 2), (2,)),), 0.1)
    state = initial_state(rule, torch.randn(6, dtype=torch.float64))
    state = rule.update(torch.randn(6, dtype=torch.float64), state, lrs)
    grad = torch.randn(6, dtype=torch.float64)
    before = [t.clone() for t in (grad, *state.tensors())]
    rule.update(grad, state, lrs)
    assert all(torch.equal(a, b) for a, b in zip(before, (grad, *state.tensors()), strict=True))


def test_every_listed_rule_is_in_the_table() -> None:
    assert {type(rule) for rule in tiny.RULES.values()} == set(RULES.values())


@pytest.mark.parametrize("name", tiny.RULES)
def test_zero_gradient_has_finite_derivatives(name: str) -> None:
    rule, lrs = tiny.rule_for(name, (((2, 2), (2,)),), 1.0)
    for theta in (torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)):
        state = initial_state(rule, theta)
        inputs = [torch.zeros_like(theta), *state.tensors()]
        inputs = [part.requires_grad_() for part in inputs]
        after = rule.update(inputs[0], state.with_tensors(tuple(inputs[1:])), lrs)
        found = torch.autograd.grad(
            sum(part.sum() for part in after.tensors()), inputs, allow_unused=True
        )
        assert all(part.isfinite().all() for part in found if part is not None)
        assert after.theta.isfinite().all()


def test_zero_gradient_moves_nothing() -> None:
    rule = Clipped(AdamW(weight_decay=0.0), 1.0)
    after = rule.update(torch.zeros(3), initial_state(rule, torch.ones(3)), (0.1,))
    torch.testing.assert_close(after.theta, torch.ones(3))


@pytest.mark.parametrize("kind", [Adam, RMSprop, Adagrad])
def test_eps_zero_is_refused(kind: Any) -> None:
    with pytest.raises(OptimizerError, match="eps must be above 0 but got 0"):
        kind(eps=0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Muon(((2, 2),), eps=0.0), "eps must be above 0 but got 0.0"),
        (lambda: Adafactor(((2, 2),), eps=(0.0, 1e-3)), "first eps must be above 0 but got 0.0"),
        (lambda: Muon(((2, 2), (3,))), r"has shape \(3,\); give .* another optimizer by `groups`"),
        (lambda: Muon(((2, 2, 3, 3),)), r"Muon is for matrices, .* shape \(2, 2, 3, 3\)"),
        (lambda: Muon(((2, 2),), adjust_lr_fn="none"), "must be original or match_rms_adamw but"),
    ],
)
def test_settings_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        make()


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_group_without_parameters_stays_empty(name: str) -> None:
    rule = tiny.shaped(tiny.RULES[name], ())
    after = rule.update(torch.zeros(0), initial_state(rule, torch.zeros(0)), (0.1,))
    assert after.theta.shape == (0,)


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
