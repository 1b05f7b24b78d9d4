"""One table through one contract: torch.optim in float64, finite differences, no mutation."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from curate.rules import RULES, Adafactor, Muon, Rule, Shapes, initial_state, make_rule
from tests import tiny

GROUPS: tuple[Shapes, ...] = (((5, 3), (4,), (2, 2, 3), ()), ((2, 6), (5,)))


def shapes_for(name: str, groups: tuple[Shapes, ...] = GROUPS) -> tuple[Shapes, ...]:
    """The shapes that `torch.optim` lets this optimizer have: Muon takes matrices."""
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
    inner = tiny.RULES[name]
    optimizer = getattr(torch.optim, type(inner).__name__)(
        [
            {"params": [next(members) for _ in shapes]}
            | {setting: value for setting, value in vars(group_rule).items() if setting != "shapes"}
            for shapes, group_rule in zip(
                groups, (inner, tiny.shaped(inner, (), default=True)), strict=False
            )
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


def small(name: str, clip: float | None) -> tuple[Rule, tuple[float, ...]]:
    """A rule for a 2 x 2 matrix and a vector of 2: theta has shape (6,)."""
    return tiny.rule_for(name, (((2, 2), (2,)),), clip)


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("name", tiny.RULES)
def test_derivative_of_update_equals_finite_differences(name: str, clip: float | None) -> None:
    rule, lrs = small(name, clip)
    state = initial_state(rule, torch.randn(6, dtype=torch.float64))
    for _ in range(3):  # away from the zero moments of the start
        state = rule.update(torch.randn(6, dtype=torch.float64), state, lrs)
    grad = torch.randn(6, dtype=torch.float64).requires_grad_()
    tensors = tuple(t.clone().requires_grad_() for t in state.tensors())

    def update(grad: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        return rule.update(grad, state.with_tensors(parts), lrs).tensors()

    assert torch.autograd.gradcheck(update, (grad, *tensors), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("name", tiny.RULES)
def test_update_does_not_mutate_its_arguments(name: str) -> None:
    rule, lrs = small(name, 0.1)
    state = initial_state(rule, torch.randn(6, dtype=torch.float64))
    state = rule.update(torch.randn(6, dtype=torch.float64), state, lrs)
    grad = torch.randn(6, dtype=torch.float64)
    before = [t.clone() for t in (grad, *state.tensors())]
    rule.update(grad, state, lrs)
    assert all(torch.equal(a, b) for a, b in zip(before, (grad, *state.tensors()), strict=True))


@pytest.mark.parametrize("name", tiny.RULES)
def test_zero_gradient_has_finite_derivatives(name: str) -> None:
    rule, lrs = small(name, 1.0)
    for theta in (torch.ones(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)):
        state = initial_state(rule, theta)
        inputs = [part.requires_grad_() for part in (torch.zeros_like(theta), *state.tensors())]
        after = rule.update(inputs[0], state.with_tensors(tuple(inputs[1:])), lrs)
        total = sum(part.sum() for part in after.tensors())
        derivatives = torch.autograd.grad(total, inputs, allow_unused=True)
        assert all(part.isfinite().all() for part in derivatives if part is not None)
        assert after.theta.isfinite().all()


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_group_without_parameters_stays_empty(name: str) -> None:
    rule = tiny.shaped(tiny.RULES[name], ())
    after = rule.update(torch.zeros(0), initial_state(rule, torch.zeros(0)), (0.1,))
    assert after.theta.shape == (0,)


def test_every_listed_rule_is_in_the_table_and_named_as_in_torch() -> None:
    assert {type(rule) for rule in tiny.RULES.values()} == set(RULES.values())
    for name, kind in RULES.items():
        assert name == kind.__name__.lower()
        assert kind.TORCH in (None, getattr(torch.optim, kind.__name__))


@pytest.mark.parametrize("name", tiny.RULES)
def test_slots_are_those_of_the_torch_optimizer(name: str) -> None:
    """Where torch's state can be read, every slot is in it, in the parameter's shape or part."""
    inner = tiny.RULES[name]
    if inner.TORCH is None:
        return
    p = torch.randn(3, 4, requires_grad=True)
    settings = {setting: value for setting, value in vars(inner).items() if setting != "shapes"}
    optimizer = inner.TORCH([p], lr=0.1, **settings)
    p.grad = torch.randn_like(p)
    optimizer.step()
    slots = tiny.shaped(inner, ((3, 4),)).init(torch.zeros(12))
    assert slots.keys() <= inner.SLOTS.keys()
    for slot, value in slots.items():
        assert optimizer.state[p][inner.SLOTS[slot]].numel() == len(value)


def test_a_rule_is_made_from_settings_with_torchs_names() -> None:
    betas = [0.8, torch.tensor(0.5)]
    settings = {"betas": betas, "eps": 1e-6, "weight_decay": 0.2, "lr": 1, "foreach": None}
    made = make_rule(RULES["adamw"], settings, ((3,),), torch.float32)
    assert made == RULES["adamw"](betas=(0.8, 0.5), eps=1e-6, weight_decay=0.2)
    with pytest.raises(KeyError, match="momentum"):
        make_rule(RULES["sgd"], settings, (), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_eps_of_none_is_that_of_the_dtype(dtype: torch.dtype) -> None:
    settings = {"beta2_decay": -0.5, "eps": [None, 0.01], "d": 2.0, "weight_decay": 0.0}
    made = make_rule(Adafactor, settings, ((2, 3),), dtype)
    assert made == Adafactor(((2, 3),), -0.5, (torch.finfo(dtype).eps, 0.01), 2.0, 0.0)
