"""The tables of names agree with what they stand for."""

from importlib import import_module
from typing import Any

import pytest

from curate import models
from curate.recipe.names import OBJECTIVES, POLICIES, find_objective
from curate.recipe.reference import described
from curate.recipe.schema import Recipe
from curate.selection.policies import Evidence


def at(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_goes_back_if_it_reads_influences(name: str) -> None:
    facts, policy = POLICIES[name], at(POLICIES[name].path)
    assert facts.goes_back == (policy.needs is Evidence.INFLUENCE)
    assert callable(policy.values)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_the_one_of_its_name(name: str) -> None:
    assert type(models.load_objective(OBJECTIVES[name].path)) is at(OBJECTIVES[name].path)
    assert find_objective(name) is OBJECTIVES[name]
    assert f"`{name}`" in described(Recipe)["objective"]


def test_an_objective_of_the_users_own_reads_features_and_any_labels() -> None:
    facts = find_objective("package.module:name")
    assert facts.path == "package.module:name"
    assert (facts.reads, facts.label, facts.tokens) == ("features", "any", False)
