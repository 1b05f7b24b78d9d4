"""A loop that does not train as it is simulated is told so by its own steps, and what differs."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curate import LookAheadLoader
from curate.errors import SimulationError
from curate.integrations import witness
from tests.integrations.loop import data, loader, losses, net, target, train

Train = Callable[[Any, nn.Module, torch.optim.Optimizer], None]


def loop(
    loss: Callable[[nn.Module, Any], Tensor] = lambda model, batch: losses(model, batch).mean(),
    before: Callable[[nn.Module, torch.optim.Optimizer, int], None] = lambda *_: None,
    after: Callable[[nn.Module, int], None] = lambda *_: None,
    every: int = 1,
) -> Train:
    """A plain loop, with a loss of its own and what it does before and after a step."""

    def train(batches: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        for k, batch in enumerate(batches):
            loss(model, batch).backward()
            if (k + 1) % every:
                continue
            before(model, optimizer, k)
            optimizer.step()
            after(model, k)
            optimizer.zero_grad()

    return train


def weighted(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([1.0, 3.0]))


def penalized(model: nn.Module, batch: Any) -> Tensor:
    return losses(model, batch).mean() + 0.1 * sum(p.square().sum() for p in model.parameters())


def shaken(model: nn.Module, batch: Any) -> Tensor:
    return losses(model, [batch[0] + 0.3 * torch.randn(batch[0].shape), batch[1]]).mean()


def clip(model: nn.Module, *_: Any) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)


def clip_values(model: nn.Module, *_: Any) -> None:
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)


def mask(model: nn.Module, *_: Any) -> None:
    grad = next(model.parameters()).grad
    assert grad is not None
    grad[:, 0] = 0


def warm_up(_: nn.Module, optimizer: torch.optim.Optimizer, k: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.02 * (k + 1)


@torch.no_grad()
def clamp(model: nn.Module, *_: Any) -> None:
    for p in model.parameters():
        p.clamp_(-0.1, 0.1)


def ahead(batches: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Trains on every batch when it has drawn the next."""

    def late() -> Iterator[Any]:
        iterator = iter(batches)
        held = next(iterator)
        for batch in iterator:
            yield held
            held = batch

    loop()(late(), model, optimizer)


UNLIKE: dict[str, tuple[Train, str]] = {
    "scaled": (loop(lambda m, b: 3 * losses(m, b).mean()), "it is 3 times as large"),
    "summed": (loop(lambda m, b: losses(m, b).sum()), "it is 8 times as large"),
    "class weights": (loop(weighted), "gradient .* is not that of the objective: it differs"),
    "weight penalty": (loop(penalized), "gradient .* is not that of the objective: it differs"),
    "augmented": (loop(shaken), "gradient .* is not that of the objective: it differs"),
    "clipped": (loop(before=clip), "it is 0.[0-9]+ times as large"),
    "clipped by value": (loop(before=clip_values), "is not that of the objective: it differs"),
    "masked": (loop(before=mask), "it differs by 0?.?[0-9.]+ of its norm in 0.weight"),
    "rate by hand": (loop(before=warm_up), "a learning rate of 0.02 where 0.1 was foreseen"),
    "weights in a box": (loop(after=clamp), "the update moves 0.weight by"),
    "accumulated": (loop(every=2), "is not that of the objective"),
    "read ahead": (ahead, "is not that of the objective"),
}


def wrapped(model: nn.Module, optimizer: Any, **options: Any) -> LookAheadLoader:
    given = {"horizon": 2, "keep": 0.5} | options
    objective = given.pop("objective", losses)
    return LookAheadLoader(loader(), model, optimizer, objective, target(), **given)


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.parametrize("horizon", [1, 3])
def test_a_loop_that_trains_otherwise_is_told_at_its_first_steps(name: str, horizon: int) -> None:
    train, message = UNLIKE[name]
    model = net(dropout=0.2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = wrapped(model, optimizer, horizon=horizon)
    with pytest.raises(SimulationError, match=f"step [012] of the loop: .*{message}"):
        train(batches, model, optimizer)


@pytest.mark.parametrize(("told", "done"), [(2, 1), (1, 2), (2, 3)])
def test_batches_of_a_step_are_counted(told: int, done: int) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = wrapped(model, optimizer, accumulate=told, scale=lambda n: float(n))
    with pytest.raises(SimulationError):
        loop(every=done)(batches, model, optimizer)


def by_closure(batches: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for batch in batches:

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = losses(model, batch).mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def noisy(model: Any, batch: Any) -> Tensor:
    """Noise from NumPy in training, beside the model's dropout."""
    if not model.training:
        return losses(model, batch)
    noise = torch.from_numpy(np.random.randn(*batch[0].shape)).float()  # noqa: NPY002
    return losses(model, [batch[0] + noise, batch[1]])


def twice(model: Any, batch: Any) -> Tensor:
    """Two passes, each with a dropout of its own."""
    return losses(model, batch) + losses(model, batch)


ALIKE: dict[str, tuple[Train, dict[str, Any]]] = {
    "plain": (loop(), {}),
    "clipped": (loop(before=clip), {"clip_norm": 1e-2}),
    "closure": (by_closure, {}),
    "noise": (loop(lambda m, b: noisy(m, b).mean()), {"objective": noisy}),
    "two passes": (loop(lambda m, b: twice(m, b).mean()), {"objective": twice}),
    "micro-batches": (loop(), {"micro_batch": 3}),
    "scaled": (loop(lambda m, b: 3 * losses(m, b).mean()), {"scale": lambda _: 3.0}),
}


@pytest.mark.parametrize("name", ALIKE)
def test_a_loop_that_trains_as_simulated_is_left_in_peace(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """All of its steps are watched, dropout included, and nothing stays behind."""
    monkeypatch.setattr(witness, "SHARE", 1e9)
    checks = watched_steps(monkeypatch)
    train, options = ALIKE[name]
    model = net(dropout=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    batches = wrapped(model, optimizer, **options)
    for _ in range(2):
        train(batches, model, optimizer)
    batches.settle()
    assert len(checks) == 2 * len(batches)
    assert not left_behind(model, optimizer)


def left_behind(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """The hooks of a witness that are still there."""
    hooks = (
        *model._forward_pre_hooks.values(),
        *optimizer._optimizer_step_pre_hooks.values(),
        *optimizer._optimizer_step_post_hooks.values(),
    )
    return [hook.__name__ for hook in hooks if isinstance(hook.__self__, witness.Witness)]


def watched_steps(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The steps that were compared, as they come."""
    steps: list[Any] = []
    compare = witness.Witness._compare_gradient

    def noted(self: Any, watched: Any, *rest: Any) -> None:
        steps.append(watched.number)
        compare(self, watched, *rest)

    monkeypatch.setattr(witness.Witness, "_compare_gradient", noted)
    return steps


@pytest.mark.parametrize("options", [{"keep": 0.5}, {"keep": "weights"}], ids=str)
@pytest.mark.parametrize("horizon", [1, 2])
def test_batches_of_a_step_that_differ_in_size_are_one_mean(
    options: dict[str, Any], horizon: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row that is kept counts the same, though the loop takes a mean of means."""
    monkeypatch.setattr(witness, "AT_ONCE", 100)
    model, examples = net(), data(54).tensors
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batches = [[x[a:b] for x in examples] for a, b in ((0, 16), (16, 22), (22, 36), (36, 54))]
    chosen = LookAheadLoader(
        batches * 2,
        model,
        optimizer,
        losses,
        target(),
        accumulate=2,
        clip_norm=1.0,
        horizon=horizon,
        **options,
    )
    train(chosen, model, optimizer, accumulate=2)


def test_what_begins_later_is_seen_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(model: nn.Module, _: torch.optim.Optimizer, k: int) -> None:
        if k >= 4:
            mask(model)

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop(before=late)(wrapped(model, optimizer), model, optimizer)
    monkeypatch.setattr(witness, "SHARE", 1e9)
    with pytest.raises(SimulationError, match="step 4 of the loop"):
        loop(before=late)(wrapped(model, optimizer), model, optimizer)


def test_two_steps_are_watched_at_once_and_then_a_hundredth_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a clock that moves a second at each look: a check takes one, and so does nothing else."""
    now = 0.0

    class Clock:
        @staticmethod
        def monotonic() -> float:
            nonlocal now
            now += 1
            return now

    monkeypatch.setattr(witness, "time", Clock)
    checks = watched_steps(monkeypatch)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = wrapped(model, optimizer, horizon=1)
    for _ in range(60):
        loop()(batches, model, optimizer)
    assert checks[:2] == [0, 1]
    steps = 60 * len(batches)
    assert len(checks) - 2 <= 0.01 * now
    assert len(checks) - 2 >= 0.002 * steps


def test_what_is_only_looked_at_is_not_trained() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert len(list(wrapped(model, optimizer))) == len(loader())
    assert not left_behind(model, optimizer)


def at_step(first: int, change: Callable[[nn.Module, torch.optim.Optimizer], None]) -> Train:
    """A loop that changes something before it uses the batch of a step."""

    def train(batches: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        for k, batch in enumerate(batches):
            if k == first:
                change(model, optimizer)
            optimizer.zero_grad()
            losses(model, batch).mean().backward()
            optimizer.step()

    return train


def set_decay(_: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.3


def freeze(model: nn.Module, _: torch.optim.Optimizer) -> None:
    model.get_submodule("0").requires_grad_(False)


def clear(_: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


@pytest.mark.parametrize(
    ("change", "first", "message"),
    [
        (set_decay, 1, r"options \(weight decay, momentum, betas\) are others than when"),
        (freeze, 1, "0.bias is frozen, unfrozen or in another group since"),
        (lambda model, _: clamp(model), 1, "the weights it begins with are not those"),
        (set_decay, 2, "an option of the optimizer was changed"),
        (freeze, 2, "parameters were frozen, unfrozen or added"),
    ],
)
def test_what_changes_within_a_window_is_told(change: Any, first: int, message: str) -> None:
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = wrapped(model, optimizer, horizon=4)
    with pytest.raises(
        SimulationError, match=f"step {first + (first > 1)} of the loop: .*{message}"
    ):
        at_step(first, change)(batches, model, optimizer)


@pytest.mark.parametrize("horizon", [1, 2])
@pytest.mark.parametrize("change", [set_decay, freeze])
def test_what_changes_between_epochs_is_followed(horizon: int, change: Any) -> None:
    """Freezing layers or setting an option for a new epoch is ordinary."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batches = wrapped(model, optimizer, horizon=horizon)
    for _ in range(2):
        loop()(batches, model, optimizer)
        change(model, optimizer)
    assert all(report.realized is not None for report in batches.reports)


def test_passes_that_are_not_for_the_loss_are_told_apart() -> None:
    """A look at accuracy in training mode draws dropout of its own before."""

    def looking(model: nn.Module, batch: Any) -> Tensor:
        model(batch[0])
        return losses(model, batch).mean()

    model = net(dropout=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop(looking)(wrapped(model, optimizer), model, optimizer)


def test_what_is_moved_after_the_step_is_not_taken_for_what_was_trained_with() -> None:
    """A teacher that follows, as in self-distillation."""

    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.teacher = net(dropout=0.0), net(dropout=0.0).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x) + self.teacher(x)
            return out

    @torch.no_grad()
    def follow(model: nn.Module, _: int) -> None:
        assert isinstance(model, Student)
        for slow, p in zip(model.teacher.parameters(), model.net.parameters(), strict=True):
            slow.lerp_(p, 0.5)

    model = Student()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop(after=follow)(wrapped(model, optimizer, horizon=1), model, optimizer)


def test_what_another_optimizer_trains_is_told() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.get_submodule("0").parameters(), lr=0.1)
    other = torch.optim.SGD(model.get_submodule("3").parameters(), lr=0.1)

    def both(model: nn.Module, _: int) -> None:
        other.step()
        model.zero_grad()

    with pytest.raises(SimulationError, match=r"moves 3\.weight, which had not been trained"):
        loop(after=both)(wrapped(model, optimizer), model, optimizer)
