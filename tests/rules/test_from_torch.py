"""A rule that is read from a live optimizer takes the steps that the optimizer would take."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curate.errors import OptimizerError
from curate.rules import State, from_torch
from curate.rules.from_torch import READABLE

CASES: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "sgd-momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "sgd-damped": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "weight_decay": 0.1}),
    "adam-decoupled": (
        torch.optim.Adam,
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "weight_decay": 0.1}),
    "rmsprop-centered": (
        torch.optim.RMSprop,
        {"lr": 0.01, "momentum": 0.8, "centered": True, "eps": 1e-4},
    ),
    "adagrad": (
        torch.optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.2, "initial_accumulator_value": 0.3, "weight_decay": 0.1},
    ),
    "adafactor": (torch.optim.Adafactor, {"lr": 0.1, "d": 1.2, "weight_decay": 0.1}),
    "adafactor-eps": (torch.optim.Adafactor, {"lr": 0.9, "beta2_decay": -0.5, "eps": (0.3, 0.01)}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6}),
}


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()


def make(name: str, net: nn.Module) -> torch.optim.Optimizer:
    kind, options = CASES[name]
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1]},
        {"params": [p for p in net.parameters() if p.ndim == 1], "lr": 0.003, "weight_decay": 0.0},
    ]
    return kind(groups, **options)


def step(optimizer: torch.optim.Optimizer, clip: float | None = None) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.randn_like(p)
    if clip is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("done", [0, 1, 4])
@pytest.mark.parametrize("name", CASES)
def test_the_rule_continues_from_where_the_optimizer_stands(
    name: str, done: int, clip: float | None
) -> None:
    net = module()
    optimizer = make(name, net)
    for _ in range(done):
        step(optimizer)
    live = from_torch(optimizer, clip)
    state = live.state()
    ordered = [p for group in live.parameters for p in group]
    for _ in range(3):
        torch.manual_seed(int(state.step))
        gradients = {p: torch.randn_like(p) for g in optimizer.param_groups for p in g["params"]}
        torch.manual_seed(int(state.step))
        step(optimizer, clip)
        state = live.rule.update(flat([gradients[p] for p in ordered]), state, live.lrs)
    assert (state.theta - flat([p.detach() for p in ordered])).abs().max() <= 1e-12


def test_every_optimizer_that_can_be_read_is_in_the_table() -> None:
    assert {kind for kind, _ in CASES.values()} == set(READABLE)


def test_reading_changes_and_shares_nothing() -> None:
    optimizer = make("adamw", module())
    step(optimizer)
    live = from_torch(optimizer)
    before = live.state()
    copy = State(before.theta.clone(), {k: v.clone() for k, v in before.slots.items()}, before.step)
    step(optimizer)
    assert torch.equal(before.theta, copy.theta)
    assert all(torch.equal(before.slots[k], copy.slots[k]) for k in copy.slots)


def test_frozen_and_unused_parameters_stay_out() -> None:
    net = module()
    frozen, unused = net[0].bias, net[1].bias
    frozen.requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    assert sum(p.numel() for p in from_torch(optimizer).parameters[0]) == 12 + 8 + 2
    net(torch.randn(5, 3).double()).sum().backward()
    unused.grad = None
    optimizer.step()
    (members,) = from_torch(optimizer).parameters
    assert len(members) == 2
    assert all(p is not frozen and p is not unused for p in members)


def test_a_group_without_momentum_beside_one_with_it_still_trains() -> None:
    net = module()
    groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), "momentum": 0.9}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    step(optimizer)
    assert [len(members) for members in from_torch(optimizer).parameters] == [2, 2]


def test_wrappers_are_seen_through() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    wrapped: Any = Wrapper(torch.optim.SGD(module().parameters(), lr=0.5))
    assert from_torch(wrapped).lrs == (0.5,)


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda p: torch.optim.Muon([q for q in p if q.ndim == 2]), "optimizer Muon is not mod"),
        (lambda p: torch.optim.Adamax(p), "optimizer Adamax is not modeled; use torch.optim's"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "Adam with amsgrad=True is not modeled"),
        (lambda p: torch.optim.SGD(p, lr=1, maximize=True), "SGD with maximize=True is not"),
        (lambda _: nn.Linear(1, 1), "a Linear is not a torch.optim optimizer"),
    ],
)
def test_what_is_not_modeled_is_refused(make_one: Any, message: str) -> None:
    with pytest.raises(OptimizerError, match=message):
        from_torch(make_one(module().parameters()))


def test_parameters_that_started_apart_are_refused() -> None:
    net = module()
    optimizer = torch.optim.Adam(net[0].parameters())
    step(optimizer)
    optimizer.add_param_group({"params": list(net[1].parameters())})
    step(optimizer)
    with pytest.raises(OptimizerError, match=r"different numbers of steps \(1 to 2\)"):
        from_torch(optimizer)
