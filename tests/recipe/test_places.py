"""A key in the wrong place is answered with the place that it has."""

import pytest

from curate.recipe import check_recipe
from curate.recipe.places import advice
from tests.recipe.base import BASE, refused

PLACES = {
    "lr": "training.optimizer.lr",
    "training.lr": "training.optimizer.lr",
    "training.learning_rate": "training.optimizer.lr",
    "training.optimizer.learning_rate": "lr",
    "keep": "selection.keep",
    "model.rank": "model.lora.rank",
    "model.batch_szie": "training.batch_size",
    "selection.fraction": "selection.keep.fraction or data.label_noise.fraction",
    "training.batch": "batch_size",
    "selection.k": "horizon",
    "selection.horizn": "horizon",
    "validation": "data.validation or tune.validation",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_key_is_answered_with_the_place_that_it_has(place: str) -> None:
    assert refused(f"{place}=1") == f"{place}: unknown key; did you mean {PLACES[place]}?"


def test_the_places_named_are_taken() -> None:
    taken = {"training.optimizer.lr": 0.1, "selection.keep": 0.5, "training.batch_size": 4}
    check_recipe(BASE, [f"{path}={value}" for path, value in taken.items()])
    assert taken.keys() <= set(PLACES.values())


def test_a_key_that_no_section_has_is_to_be_removed() -> None:
    assert advice("training.xyzzy") == "unknown key; remove it"


def test_a_key_of_another_kind_of_the_section_does_not_belong_there() -> None:
    assert advice("training.optimizer.momentum") == "does not belong here; remove it"
    assert advice("training.optimizer.groups.0.groups") == "does not belong here; remove it"
