"""The wrapped loader: what it keeps, and that it leaves everything else alone."""

import copy
import dataclasses
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from curate import LookAheadLoader
from curate.errors import ModelError, OptimizerError, OptionError
from tests.integrations.loop import cosine, data, loader, losses, net, target, train
from tests.integrations.prophecy import foretell

Loop = Callable[[Any, nn.Module, torch.optim.Optimizer, Any], None]


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
}


def theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    """All that must not change: parameters, gradients, modes, optimizer, RNG."""
    state = optimizer.state_dict()
    return [
        *(p.detach().clone() for p in model.parameters()),
        *(None if p.grad is None else p.grad.clone() for p in model.parameters()),
        *(m.training for m in model.modules()),
        *(
            v.clone() if isinstance(v, Tensor) else v
            for part in state["state"].values()
            for v in part.values()
        ),
        *(group["lr"] for group in state["param_groups"]),
        torch.get_rng_state(),
    ]


def same(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_keep_everything_is_bit_for_bit_the_plain_loop(name: str) -> None:
    ends = []
    for wrapped in (False, True):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        scheduler = cosine(optimizer)
        torch.manual_seed(1)
        batches: Any = loader()
        if wrapped:
            batches = LookAheadLoader(
                batches,
                model,
                optimizer,
                losses,
                target(),
                keep=1.0,
                horizon=3,
                scheduler=scheduler,
                clip_norm=1.0,
            )
        for _ in range(2):
            train(batches, model, optimizer, scheduler)
        ends.append(theta(model))
    assert torch.equal(*ends)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("training", [True, False])
def test_choosing_changes_nothing_of_the_callers(name: str, training: bool) -> None:
    model = net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = cosine(optimizer)
    train(loader(), model, optimizer, scheduler)
    wrapped = LookAheadLoader(
        loader(), model, optimizer, losses, target(), horizon=3, scheduler=scheduler, clip_norm=1.0
    )
    window = list(loader())[:3]
    model.train(training)
    model[2].eval()  # type: ignore[index]
    before = snapshot(model, optimizer)
    epoch = scheduler.last_epoch
    wrapped.choose(window)
    wrapped.settle()
    assert same(before, snapshot(model, optimizer))
    assert scheduler.last_epoch == epoch


def test_an_exception_inside_a_window_leaves_everything_as_it_was() -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    calls, most = 0, 1000

    def failing(model: Any, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > most:
            raise RuntimeError("disk on fire")
        return losses(model, batch)

    wrapped = LookAheadLoader(loader(), model, optimizer, failing, target(), horizon=2)
    most = 3
    window = list(loader())[:2]
    model.train()
    before = snapshot(model, optimizer)
    with pytest.raises(RuntimeError, match="disk on fire"):
        wrapped.choose(window)
    assert same(before, snapshot(model, optimizer))


@pytest.mark.parametrize("horizon", [1, 4, 100])
def test_batches_are_cut_in_order_and_all_of_them_come(horizon: int) -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    wrapped = LookAheadLoader(
        DataLoader(data(), batch_size=20),
        model,
        optimizer,
        losses,
        target(),
        horizon=horizon,
        keep=0.3,
        rounds=2,
    )
    assert len(wrapped) == 5
    assert wrapped.batch_size == 20
    sizes, seen = [], []
    for batch in wrapped:
        sizes.append(len(batch[0]))
        seen.append(batch[0])
    assert sizes == [6, 6, 6, 6, 5]
    rows = data().tensors[0]
    places = [int((rows == x).all(dim=1).nonzero()) for x in torch.cat(seen)]
    assert places == sorted(places)
    assert sum(report.kept for report in wrapped.reports) == 29
    assert sum(report.candidates for report in wrapped.reports) == 96


def test_selection_beats_no_selection_on_wrong_labels() -> None:
    """Two seeds, 40 % wrong labels: lower clean loss in the mean, most wrong labels dropped."""
    ends: dict[bool, list[float]] = {False: [], True: []}
    wrong_kept: list[Tensor] = []

    def watched(batches: Any) -> Iterator[Any]:
        for batch in batches:
            wrong_kept.append(batch[2])
            yield batch

    for seed in range(2):
        for wrapped in (False, True):
            model = net(dropout=0.0)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
            torch.manual_seed(seed)
            batches: Any = DataLoader(data(320, 0.4, seed), batch_size=32, shuffle=True)
            if wrapped:
                chooser = LookAheadLoader(batches, model, optimizer, losses, target(), horizon=2)
                batches = chooser
            for _ in range(4):
                train(watched(batches) if wrapped else batches, model, optimizer)
            test = data(500, seed=77).tensors
            model.eval()
            ends[wrapped].append(losses(model, test).mean().item())
    assert np.mean(ends[True]) < 0.8 * np.mean(ends[False])
    assert torch.cat(wrong_kept).float().mean() < 0.2


def test_reports_compare_what_was_predicted_with_what_came_of_it() -> None:
    """A small learning rate is where the linear picture holds: the ratio is near 1."""
    model = net(dropout=0.0).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    doubled = TensorDataset(*(t.double() if t.is_floating_point() else t for t in data().tensors))
    goal = [target()[0].double(), target()[1]]
    wrapped = LookAheadLoader(
        DataLoader(doubled, batch_size=16),
        model,
        optimizer,
        losses,
        goal,
        horizon=2,
        rounds=1,
        keep=0.9,
    )
    for batch in wrapped:  # the loop itself clips nothing here
        optimizer.zero_grad()
        losses(model, batch).mean().backward()
        optimizer.step()
    ratios = [report.ratio for report in wrapped.reports]
    assert len(ratios) == 3
    assert all(ratio is not None and 0.7 < ratio < 1.3 for ratio in ratios), ratios


CUTS: dict[str, dict[str, Any]] = {
    "one step": {"horizon": 1},
    "many steps": {"horizon": 4, "keep": 0.3},
    "two batches a step": {"horizon": 2, "accumulate": 2},
    "by label": {"horizon": 2, "group_by": lambda batch: batch[1]},
    "weights": {"horizon": 3, "keep": "weights"},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("case", CUTS)
def test_what_is_simulated_is_what_happens(
    monkeypatch: pytest.MonkeyPatch, name: str, case: str
) -> None:
    """Schedule, clipping, moments, accumulation and weights: all as in the caller's loop."""
    errors = foretell(monkeypatch)
    model = net(dropout=0.0)
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = cosine(optimizer)
    options = {"rounds": 2, "scheduler": scheduler, "clip_norm": 1.0} | CUTS[case]
    wrapped = LookAheadLoader(loader(), model, optimizer, losses, target(), **options)
    for _ in range(3):
        train(wrapped, model, optimizer, scheduler, options.get("accumulate", 1))
    assert len(errors) == len(wrapped.reports) >= 3
    assert max(errors) < 2e-5


def test_batches_weighed_rather_than_cut() -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    wrapped = LookAheadLoader(
        loader(0.4), model, optimizer, losses, target(), keep="weights", horizon=2
    )
    pairs = list(wrapped)
    assert len(pairs) == 6
    for batch, weights in pairs:
        assert weights.shape == (len(batch[0]),) == (16,)
        assert weights.mean() == pytest.approx(1)
        assert weights.min() > 0
        assert weights.std() > 0.1
    wrong = torch.cat([batch[2] for batch, _ in pairs])
    weights = torch.cat([weights for _, weights in pairs])
    assert weights[wrong].mean() < 0.7 * weights[~wrong].mean()


def test_a_loop_left_early_is_not_measured() -> None:
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    wrapped = LookAheadLoader(loader(), model, optimizer, losses, target(), horizon=3, rounds=1)
    for _ in wrapped:
        break
    train(wrapped, model, optimizer)
    assert wrapped.reports[0].realized is None
    assert all(report.realized is not None for report in wrapped.reports[1:])


@dataclasses.dataclass
class Pair:
    x: Tensor
    y: Tensor
    name: list[str]


@pytest.mark.parametrize("structure", ["list", "tuple", "dict", "dataclass"])
def test_batches_of_any_structure(structure: str) -> None:
    def collate(items: list[Any]) -> Any:
        x, y = torch.stack([i[0] for i in items]), torch.stack([i[1] for i in items])
        names = [f"{float(i[0][0]):.4f}" for i in items]
        whole: dict[str, Any] = {
            "list": [x, y],
            "tuple": (x, y),
            "dict": {"x": x, "y": y, "name": names, "n": 3},
            "dataclass": Pair(x, y, names),
        }
        return whole[structure]

    def parts(batch: Any) -> tuple[Tensor, Tensor]:
        if isinstance(batch, dict):
            return batch["x"], batch["y"]
        return (batch.x, batch.y) if isinstance(batch, Pair) else (batch[0], batch[1])

    def objective(model: Any, batch: Any) -> Tensor:
        x, y = parts(batch)
        return nn.functional.cross_entropy(model(x), y, reduction="none")

    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    batches = DataLoader(data(), batch_size=16, collate_fn=collate)
    goal = collate([data(8, seed=4)[i] for i in range(8)])
    wrapped = LookAheadLoader(batches, model, optimizer, objective, goal, horizon=2, rounds=1)
    for batch in wrapped:
        x, y = parts(batch)
        assert len(x) == len(y) == 8
        if structure in ("dict", "dataclass"):
            names = batch["name"] if isinstance(batch, dict) else batch.name
            assert names == [f"{float(v):.4f}" for v in x[:, 0]]


def test_quota_keeps_the_same_share_of_every_label() -> None:
    model = net()
    wrapped = LookAheadLoader(
        loader(),
        model,
        OPTIMIZERS["adamw"](model.parameters()),
        losses,
        target(),
        group_by=lambda batch: batch[1],
        rounds=1,
    )
    plain = list(DataLoader(data(), batch_size=16))
    for batch, decision in zip(plain, wrapped.choose(plain), strict=True):
        labels = batch[1].numpy()
        share = [decision.kept[labels == label].sum() / (labels == label).sum() for label in (0, 1)]
        assert abs(share[0] - share[1]) < 0.2


def test_several_targets_by_name_and_as_loaders() -> None:
    model = net()
    wrapped = LookAheadLoader(
        loader(),
        model,
        OPTIMIZERS["sgd"](model.parameters()),
        losses,
        {"a": target(), "b": DataLoader(data(30, seed=3), batch_size=16)},
        rounds=1,
    )
    assert [len(t.examples) for t in wrapped._chooser._targets] == [64, 30]
    wrapped.choose(list(loader())[:1])


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (nn.Linear(6, 2), torch.optim.Adamax, "Adamax is not modeled"),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2)), torch.optim.SGD, "layer 0 is a Batch"),
        (nn.Linear(5, 2), torch.optim.SGD, "cannot be trained on this data"),
    ],
)
def test_what_cannot_be_followed_is_refused_at_construction(
    model: nn.Module, optimizer: Any, message: str
) -> None:
    with pytest.raises((ModelError, OptimizerError), match=message):
        LookAheadLoader(loader(), model, optimizer(model.parameters(), lr=0.1), losses, target())


def test_frozen_batch_norm_is_welcome() -> None:
    model = nn.Sequential(nn.BatchNorm1d(6).eval(), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapped = LookAheadLoader(loader(), model, optimizer, losses, target())
    wrapped.choose(list(loader())[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, "horizon must be a number of steps, at least 1"),
        ({"horizon": "long"}, "horizon must be a number of steps, at least 1, but got 'long'"),
        ({"keep": 0.0}, "keep must be above 0"),
        ({"keep": "half"}, """or "weights", but got 'half'"""),
        ({"keep": "weights", "rounds": 1}, "needs at least 2 rounds"),
        ({"keep": "weights", "group_by": len}, "leave it out"),
        ({"keep": 1.0, "log": "somewhere"}, "there is nothing to log"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"snapshots": 0}, "snapshots must be at least 1"),
        ({"removal": "gone"}, "removal must be one of renormalised, fixed but got 'gone'"),
        ({"accumulate": 0}, "accumulate must be at least 1 but got 0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    model = net()
    with pytest.raises(OptionError, match=message):
        LookAheadLoader(
            loader(), model, OPTIMIZERS["sgd"](model.parameters()), losses, target(), **options
        )


@pytest.mark.parametrize("targets", [[], {}, {"a": []}, [torch.zeros(0, 6), torch.zeros(0)]])
def test_targets_without_examples_are_refused(targets: Any) -> None:
    model = net()
    with pytest.raises(OptionError, match="holds no examples"):
        LookAheadLoader(loader(), model, OPTIMIZERS["sgd"](model.parameters()), losses, targets)


def test_of_a_compiled_model_the_one_inside_is_simulated() -> None:
    model = net()
    compiled: Any = torch.compile(model, backend="eager")
    optimizer = OPTIMIZERS["adamw"](compiled.parameters())
    wrapped = LookAheadLoader(loader(), compiled, optimizer, losses, target(), rounds=1)
    wrapped.choose(list(loader())[:1])
    assert wrapped._chooser.training.model is model


def test_a_loader_can_be_pickled_and_copied() -> None:
    model = net()
    wrapped = LookAheadLoader(
        loader(), model, OPTIMIZERS["sgd"](model.parameters()), losses, target()
    )
    for twin in (pickle.loads(pickle.dumps(wrapped)), copy.deepcopy(wrapped)):
        assert len(list(twin)) == 6
