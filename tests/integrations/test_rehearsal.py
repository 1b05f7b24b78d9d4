"""An optimizer that does not step by its rule is found out before it trains, and left untouched."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate import LookAheadLoader
from curate.errors import OptimizerError, SimulationError
from tests.integrations.loop import loader, losses, net, target


def wrapped(model: nn.Module, optimizer: Any, **options: Any) -> LookAheadLoader:
    given = {"horizon": 2, "keep": 0.5} | options
    return LookAheadLoader(loader(), model, optimizer, losses, target(), **given)


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **({"lr": 0.5, "momentum": 0.9} | options))


@torch.no_grad()
def box(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.clamp_(-0.2, 0.2)


def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        nn.utils.clip_grad_value_(group["params"], 1e-3)


def replace_step(optimizer: torch.optim.Optimizer) -> None:
    plain = optimizer.step

    def step(*arguments: Any) -> None:
        plain(*arguments)
        box(optimizer)

    optimizer.step = step  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "hook before": lambda optimizer: optimizer.register_step_pre_hook(clip),
    "hook after": lambda optimizer: optimizer.register_step_post_hook(box),
    "step replaced": replace_step,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("lr", [0.5, 0.0])
def test_an_optimizer_that_does_more_is_refused(name: str, lr: float) -> None:
    """Also where a warm-up begins at a learning rate of 0, of which nothing would be seen."""
    model = net()
    optimizer = sgd(model, lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: k / 4 if lr == 0 else 1.0)
    CHANGES[name](optimizer)
    batches = wrapped(model, optimizer, scheduler=scheduler)
    with pytest.raises(SimulationError, match="a trial of the optimizer, step 1: the update moves"):
        next(iter(batches))


def test_nothing_of_the_trial_stays() -> None:
    """Moments, counts, averages that a hook keeps, and what a scheduler notes of steps."""
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    torch.optim.lr_scheduler.StepLR(optimizer, 5)  # notes whether the optimizer has stepped
    average = [p.detach().clone() for p in model.parameters()]
    calls = 0

    def follow(*_: Any) -> None:
        nonlocal calls
        calls += 1
        with torch.no_grad():
            for mean, p in zip(average, model.parameters(), strict=True):
                mean.lerp_(p, 0.5)

    optimizer.register_step_post_hook(follow)
    for batch in list(loader())[:2]:
        losses(model, batch).mean().backward()
        optimizer.step()
    grads = [p.grad for p in model.parameters()]
    storages = [p.data_ptr() for p in model.parameters()]
    slots = {p: dict(optimizer.state[p]) for p in model.parameters()}

    def values() -> list[Any]:
        tensors = [*model.parameters(), *average]
        moments = [s for p in model.parameters() for s in optimizer.state[p].values()]
        plain = {k: v for k, v in vars(optimizer).items() if isinstance(v, int | bool)}
        groups = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        return [[t.tolist() for t in (*tensors, *moments)], plain, groups, calls]

    before = values()
    next(iter(wrapped(model, optimizer)))
    assert values() == before
    assert all(p.grad is grad for p, grad in zip(model.parameters(), grads, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == storages
    for p, own in slots.items():
        assert all(optimizer.state[p][key] is slot for key, slot in own.items())


class Heads(nn.Module):
    """Two tasks in turn, a part that no loss uses, and a body."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body, self.idle = nn.Linear(6, 8), nn.Linear(3, 3)
        self.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 2)])

    def forward(self, x: Tensor, task: int) -> Tensor:
        out: Tensor = self.heads[task](torch.tanh(self.body(x)))
        return out


def by_task(model: Any, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0], batch[2]), batch[1], reduction="none")


def train_by_task(batches: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in batches:
        by_task(model, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("horizon", [1, 4])
def test_a_parameter_that_some_batches_use_is_refused(horizon: int) -> None:
    model = Heads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    batches = [(x, y, k % 2) for k, (x, y, _) in enumerate(loader())]
    chosen = LookAheadLoader(
        batches, model, optimizer, by_task, [(*target(), 0)], horizon=horizon, keep=0.5
    )
    with pytest.raises(SimulationError, match=r"uses heads\.[01]\.\w+ and that of others does not"):
        train_by_task(chosen, model, optimizer)


def test_what_no_loss_uses_stays_where_it_is() -> None:
    """torch gives it no decay, so it has none in the simulation, and the loop is followed."""
    model = Heads()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.5)
    batches = [(x, y, 0) for x, y, _ in loader()]
    chosen = LookAheadLoader(
        batches, model, optimizer, by_task, [(*target(), 0)], horizon=2, keep=0.5
    )
    train_by_task(chosen, model, optimizer)
    assert all(report.realized is not None for report in chosen.reports[:-1])


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_what_is_unfrozen_later_trains_or_is_refused(kind: str) -> None:
    """Momentum starts anywhere; Adam's corrections have one count of steps."""
    model = net(dropout=0.0)
    layer = model.get_submodule("0")
    layer.requires_grad_(False)
    optimizer = sgd(model) if kind == "sgd" else torch.optim.Adam(model.parameters(), lr=0.01)
    window = list(loader())[:4]
    for batch in window[:2]:
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()
    layer.requires_grad_(True)
    chosen = wrapped(model, optimizer, horizon=4)
    if kind == "adam":
        with pytest.raises(OptimizerError, match=r"different numbers of steps \(0 to 2\)"):
            chosen.choose(window)
        return
    chosen.choose(window)
    for batch in window:
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()
    with torch.no_grad():
        trained = float(losses(model.eval(), target()).mean())
    assert chosen.reports[0].target_loss == pytest.approx(trained, rel=1e-6)


def test_batches_of_which_no_row_can_be_dropped_are_refused() -> None:
    model = net()
    optimizer = sgd(model)
    small = LookAheadLoader(
        loader(size=1), model, optimizer, losses, target(), keep=0.5, accumulate=8
    )
    with pytest.raises(ValueError, match=r"batches of 1 cannot be cut: keep=0.5 drops none"):
        next(iter(small))
