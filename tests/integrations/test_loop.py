"""A loop decides as a planned run does, with labels, groups and rows from its batches."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from curate import LookAheadLoader
from curate.datasets import BatchExamples
from curate.errors import DataError, OptionError
from curate.influence import Target
from curate.models import FlatModel, as_objective
from curate.models.objectives.function import FunctionObjective
from curate.rules import from_torch
from curate.selection.budget import Budget
from curate.selection.driver import Decided, Selector
from curate.selection.judge import Judge
from curate.selection.policies import LookAhead
from curate.trajectory import Step, Task
from tests.integrations.loop import data, losses, net, target

COUNT, SIZE = 96, 16


def kinds(batch: Any) -> Tensor:
    """A label in which influences differ in scale: rows that are far from 0, and others."""
    far: Tensor = batch[0].abs().mean(dim=1) > 0.8
    return far.long()


def batches() -> list[Any]:
    return list(DataLoader(data(COUNT, 0.4), batch_size=SIZE))


def wrapped(model: nn.Module, optimizer: Any, **options: Any) -> LookAheadLoader:
    return LookAheadLoader(batches(), model, optimizer, losses, target(), **options)


def kept_by_loop(window: list[Any], **options: Any) -> np.ndarray:
    model = net(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    settings = {"horizon": 6, "rounds": 1, "keep": 0.5} | options
    loop = wrapped(model, optimizer, **settings)
    return np.concatenate([decision.kept for decision in loop.choose(window)])


def kept_by_selector(window: list[Any], strata: np.ndarray | None, rounds: int) -> np.ndarray:
    """A planned run through the steps that the loop is about to take."""
    model = net(dropout=0.0)
    live = from_torch(torch.optim.AdamW(model.parameters(), lr=0.02))
    task = Task(FlatModel(model), as_objective(losses, "losses"), BatchExamples(window))
    targets = [Target("target", BatchExamples([target()]))]
    steps = [
        Step(rows, torch.ones(len(rows)), (0.02,), seed=0)
        for rows in torch.arange(COUNT).split(SIZE)
    ]
    decisions: list[Decided] = []
    judge = Judge(task, live.rule, LookAhead(rounds), targets)
    selector = Selector(judge, Budget(fraction=0.5), horizon=6, strata=strata)
    selector.run(live.state(), steps, on_window=lambda _, decided: decisions.append(decided))
    return np.concatenate(decisions[0].weights) > 0


@pytest.mark.parametrize("rounds", [1, 2])
def test_labels_decide_as_the_strata_of_a_planned_run(rounds: int) -> None:
    window = batches()
    strata = torch.cat([kinds(batch) for batch in window]).numpy()
    plain, labeled = (kept_by_loop(window, label=label, rounds=rounds) for label in (None, kinds))
    assert np.array_equal(plain, kept_by_selector(window, None, rounds))
    assert np.array_equal(labeled, kept_by_selector(window, strata, rounds))
    assert not np.array_equal(plain, labeled)
    assert plain.sum() == labeled.sum() == COUNT // 2


def test_labels_are_those_of_a_key_or_of_a_function() -> None:
    keyed = [{"x": batch[0], "y": batch[1], "kind": kinds(batch)} for batch in batches()]

    def choose(label: str | Callable[[Any], Any]) -> list[list[bool]]:
        model = net(dropout=0.0)
        loader = LookAheadLoader(
            keyed,
            model,
            torch.optim.AdamW(model.parameters(), lr=0.02),
            lambda m, b: losses(m, (b["x"], b["y"])),
            {"x": target()[0], "y": target()[1]},
            label=label,
            keep=0.5,
        )
        return [decision.kept.tolist() for decision in loader.choose(keyed[:2])]

    assert choose("kind") == choose(lambda batch: [f"kind {k}" for k in batch["kind"].tolist()])


def test_a_window_that_is_not_scored_goes_through_whole_without_a_report() -> None:
    model = net()
    loop = wrapped(model, torch.optim.SGD(model.parameters(), lr=0.1), keep="auto", rounds=None)
    assert loop._chooser._paying is not None
    loop._chooser._paying._left = 1
    decisions = loop.choose(batches()[:2])
    assert all(decision.kept.all() for decision in decisions)
    assert all(decision.influences.isnan().all() for decision in decisions)
    assert loop.reports == []


@pytest.mark.parametrize("name", ["label", "group_by"])
def test_labels_and_groups_that_do_not_fit_are_refused_by_name(name: str) -> None:
    with pytest.raises(DataError, match=f"^{name} must give one value per example"):
        kept_by_loop(batches(), **{name: lambda batch: batch[1][:3]})


def test_rows_that_are_no_integers_are_refused(tmp_path: Any) -> None:
    with pytest.raises(DataError, match=r"row must give integers, .* but got float32"):
        kept_by_loop(batches(), log=tmp_path, row=lambda batch: batch[0][:, 0])


@pytest.mark.parametrize("keep", [0.5, "auto"])
def test_where_nothing_moves_batches_go_through_whole(keep: Any) -> None:
    """A warm-up that begins at a learning rate of 0: no row could be judged."""
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, k / 4))
    chosen = wrapped(model, optimizer, scheduler=scheduler, keep=keep)
    window = batches()[:2]
    decisions = chosen.choose(window[:1])
    assert decisions[0].kept.all()
    assert np.isnan(decisions[0].values).all()
    assert chosen.reports == []
    if keep == 0.5:
        assert chosen.choose(window)[1].kept.mean() == 0.5


def test_no_window_goes_beyond_the_steps_that_are_left() -> None:
    model = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = wrapped(model, optimizer, horizon=4, keep=0.5)
    drawn = 0

    def source() -> Any:
        nonlocal drawn
        for batch in batches():
            drawn += 1
            yield batch

    left = 3
    handed = chosen.stream(source(), lambda: left)
    for _ in range(3):
        next(handed)
    assert drawn == 3
    assert chosen.reports[0].steps == 3


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Rows of every simulated pass, and whether it is one to go back through."""
    found: list[tuple[int, bool]] = []
    real = FunctionObjective.losses  # in curate's own class: a loop puts back what others remember

    def counted(self: Any, model: Any, batch: Any) -> Tensor:
        found.append((len(batch[0]), torch.is_grad_enabled()))
        return real(self, model, batch)

    monkeypatch.setattr(FunctionObjective, "losses", counted)
    return found


def effortless(effort: str, count: int) -> tuple[LookAheadLoader, list[Any]]:
    """A loop that trains on a few epochs with some effort, and its windows."""
    model = net(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    loop = wrapped(model, optimizer, horizon=1, keep=0.5, rounds=1, effort=effort)
    for _ in range(count):
        for batch in loop:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    return loop, loop.reports


@pytest.mark.filterwarnings("ignore:effort=")
@pytest.mark.parametrize("effort", ["balanced", "fast"])
def test_effort_is_checked_after_the_first_steps_and_seldom_then(effort: str) -> None:
    _, reports = effortless(effort, 6)
    assert all(report.effort == "exact" for report in reports[:10])
    assert all(report.alike is None for report in reports[:10])
    assert all(report.alike is not None for report in reports[10:13])
    unchecked = [report for report in reports[10:] if report.alike is None]
    assert unchecked
    for report in unchecked:
        assert report.effort in (effort, "balanced", "exact")
        if report.effort == effort:
            assert report.target_loss is report.realized is None
            assert report.predicted is not None
    tracked = reports[10].metrics()
    assert tracked["alike"] == reports[10].alike


@pytest.mark.parametrize(("effort", "first"), [("balanced", 10), ("exact", 0)])
def test_with_many_target_rows_the_first_steps_go_through_whole(effort: str, first: int) -> None:
    """Of 8 candidates: exact influences of 64 target rows would take eight times the step."""
    model = net(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    small = list(DataLoader(data(COUNT, 0.4), batch_size=8))
    loop = LookAheadLoader(
        small, model, optimizer, losses, target(), keep=0.5, effort=effort, rounds=1
    )
    sizes = []
    for batch in loop:
        sizes.append(len(batch[0]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    assert sizes == [8] * first + [4] * (12 - first)
    assert len(loop.reports) == 12 - first
    assert [report.first_step for report in loop.reports] == [*range(first, 12)]


def test_what_trains_may_change_between_steps_that_share_a_gradient_of_the_target() -> None:
    model: Any = net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    loop = wrapped(model, optimizer, horizon=1, keep=0.5, rounds=1, effort="fast")
    for number, batch in enumerate(iter_epochs(loop, 6)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        if number in (20, 27):
            model[0].weight.requires_grad_(number == 27)
            model[0].weight.grad = None
    assert len(loop.reports) == 36


@pytest.mark.filterwarnings("ignore:effort=")
def test_what_efforts_cost_in_passes(
    passes: list[tuple[int, bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 candidates and 64 target rows: exact 1 gradient of each; others two forward passes."""
    monkeypatch.setattr("curate.selection.effort.ALIKE", 0.0)
    monkeypatch.setattr("curate.integrations.witness.AT_ONCE", 0)
    monkeypatch.setattr("curate.integrations.witness.SHARE", 0.0)
    model = net(dropout=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    found = {}
    for effort in ("exact", "balanced"):
        loop = wrapped(model, optimizer, horizon=1, keep=0.5, rounds=1, effort=effort)
        for number, batch in enumerate(iter_epochs(loop, 12)):
            if number in (30, 62):  # between checks, and before the next
                found[effort, number] = sorted(passes)
            passes.clear()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    target_rows = (64, True)
    for number in (30, 62):
        exact = found["exact", number]
        assert exact == sorted([(64, False), (16, True), target_rows])
        without_targets = [rows for rows in found["balanced", number] if rows != target_rows]
        assert without_targets == [(16, False), (16, False)]


def iter_epochs(loop: LookAheadLoader, count: int) -> Any:
    for _ in range(count):
        yield from loop


def test_with_plain_sgd_balanced_chooses_as_exact_does() -> None:
    """Nothing but where the target is looked at differs, and that little moves it little."""
    kept: list[list[set[float]]] = []
    for effort in ("exact", "balanced"):
        model = net(dropout=0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        loop = wrapped(model, optimizer, horizon=1, keep=0.5, rounds=1, effort=effort)
        kept.append([])
        for batch in iter_epochs(loop, 6):
            optimizer.zero_grad()
            kept[-1].append({*batch[0][:, 0].tolist()})
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()
    assert [report.effort for report in loop.reports].count("balanced") > 15
    alike = np.mean([len(a & b) / len(a) for a, b in zip(*kept, strict=True)])
    assert alike > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "little"}, "effort must be one of exact, balanced, fast but got 'little'"),
        ({"effort": "fast", "horizon": 4}, "effort=fast looks one step ahead in one round"),
        ({"effort": "balanced", "rounds": 2}, "effort=balanced looks one step ahead"),
    ],
)
def test_an_effort_that_does_not_go_is_refused(options: dict[str, Any], message: str) -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(OptionError, match=message):
        wrapped(model, optimizer, **({"rounds": 1, "keep": 0.5} | options))
