"""What columns of a recipe are read as: features, classes, numbers."""

from typing import Any

import pytest
import torch
from datasets import Dataset

from curate.errors import DataError
from curate.pipeline.reading import find_reader
from curate.recipe import check_recipe
from curate.recipe.load import parse
from tests.job import RECIPE

DATA = Dataset.from_dict(
    {"x": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], "label": ["b", "a", "b"], "y": [0.5, 1.5, 2.5]}
)


def reader(*overrides: str) -> Any:
    settings = ["data.label_noise=null", *overrides]
    return find_reader(check_recipe(parse(RECIPE), settings), DATA)


def test_labels_of_a_classifier_are_classes_in_order() -> None:
    found = reader()
    examples = found.examples(DATA, "here")
    assert (found.label, found.classes.count) == ("label", 2)
    assert examples.labels.tolist() == [1, 0, 1]
    assert examples.all_features().tolist() == DATA["x"][:]
    assert examples.rows.tolist() == [0, 1, 2]


def test_labels_of_a_regression_are_numbers_of_the_models_type() -> None:
    numbers = ["objective=regression", "data.columns.label=y", "training.dtype=float64"]
    found = reader(*numbers)
    examples = found.examples(DATA, "here")
    assert found.classes is None
    assert examples.labels.dtype == examples.all_features().dtype == torch.float64
    assert examples.labels.flatten().tolist() == [0.5, 1.5, 2.5]


def test_classes_are_those_of_the_training_source() -> None:
    other = Dataset.from_dict({"x": [[0.0, 0.0]], "label": ["c"]})
    with pytest.raises(DataError, match="there"):
        reader().examples(other, "there")


def test_one_class_is_nothing_to_learn() -> None:
    same = Dataset.from_dict({"x": [[0.0], [1.0]], "label": ["a", "a"]})
    with pytest.raises(DataError, match="column label has one class; there is nothing to learn"):
        find_reader(check_recipe(parse(RECIPE)), same)
