"""Parts of a job: batches of epochs, param groups by pattern, and the device."""

import pytest
import torch

from curate.errors import ModelError, RecipeError
from curate.pipeline.build import (
    assign_groups,
    choose_device,
    param_groups,
)
from curate.pipeline.steps import planned
from curate.recipe import Recipe, check_recipe
from curate.recipe.load import parse
from tests.job import RECIPE

NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


def recipe(groups: str) -> Recipe:
    return check_recipe(parse(RECIPE), [f"training.optimizer.groups={groups}"])


def test_every_epoch_has_every_row_once_and_its_own_order() -> None:
    pool = torch.tensor([3, 5, 7, 11, 13])
    taken = [step.rows for step in planned(pool, 2, 6, 0, lambda _: (1.0,), 0)]
    assert [len(batch) for batch in taken] == [2, 2, 1, 2, 2, 1]
    epochs = [torch.cat(taken[:3]), torch.cat(taken[3:])]
    assert all(epoch.sort().values.equal(pool) for epoch in epochs)
    assert not epochs[0].equal(epochs[1])


def test_a_parameter_is_of_the_first_group_that_matches_and_else_of_the_base() -> None:
    members = assign_groups(recipe("[{match: ['1.*']}, {match: ['*.bias']}]"), NAMES)
    assert members == [["0.weight"], ["1.weight", "1.bias"], ["0.bias"]]


def test_a_group_that_gets_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"groups\.1\.match: \['1\.bias'\] matches no parameter"):
        assign_groups(recipe("[{match: ['1.*']}, {match: ['1.bias']}]"), NAMES)


def test_a_group_has_the_settings_of_the_base_but_for_those_it_changes() -> None:
    groups = "[{match: ['*.bias'], weight_decay: 0.0}, {match: ['1.*'], kind: sgd, lr: 0.5}]"
    base, changed, other = param_groups(recipe(groups))
    assert (changed.kind, changed.lr, changed.weight_decay) == (base.kind, base.lr, 0.0)
    assert base.weight_decay > 0
    assert other.kind == "sgd"
    assert [section.lr for section in param_groups(recipe(groups))] == [1e-2, 1e-2, 0.5]


def test_the_device_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto").type == choose_device("cpu").type == "cpu"
    with pytest.raises(ModelError, match="sees no CUDA device"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"
    assert choose_device("cpu").type == "cpu"
