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
from curate.errors import DataError
from curate.influence import Target
from curate.models import FlatModel, as_objective
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
