"""Labels as classes or numbers, and noise that is planted among them."""

from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset, Features, Value

from curate.datasets import find_classes, holds_names, plant_label_noise, read_classes, read_numbers
from curate.errors import DataError

F64 = torch.float64


def labels(values: list[Any], feature: Any = None) -> Dataset:
    declared = None if feature is None else Features({"label": feature})
    return Dataset.from_dict({"label": values}, features=declared)


def test_labels_of_every_kind() -> None:
    for data, count, ids in [
        (labels([0, 2, 1]), 3, [0, 2, 1]),
        (labels(["b", "a", "b"]), 2, [1, 0, 1]),
        (labels([0, 2], datasets.ClassLabel(num_classes=4)), 4, [0, 2]),
        (labels([True, False]), 2, [1, 0]),
    ]:
        classes = find_classes(data, "label", "src")
        assert classes.count == count
        assert read_classes(data, "label", "src", classes).tolist() == ids
    assert find_classes(labels([0, 5]), "label", "src", count=6).count == 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (labels([0, 1, -1]), "column label is -1 at row 2"),
        (labels([0, 7, 7]), r"2 different labels but the largest is 7 \(row 1\)"),
        (labels([0, None]), "column label is null at row 1"),
        (labels([0.5, 1.5]), "class labels must be ints, strings or ClassLabel"),
        (labels([0, -1], datasets.ClassLabel(num_classes=4)), "column label is -1 at row 1"),
        (labels([[0], [1]]), "class labels must be ints"),
    ],
)
def test_bad_labels_are_named_with_their_row(data: Dataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_classes(data, "label", "src", find_classes(data, "label", "src"))


def test_validation_labels_have_to_be_known() -> None:
    classes = find_classes(labels(["a", "b"]), "label", "train")
    with pytest.raises(DataError, match=r"val: column label is 'c' at row 1"):
        read_classes(labels(["a", "c"]), "label", "val", classes)
    with pytest.raises(DataError, match=r"column label is 2 at row 0, but labels must be 0..1"):
        read_classes(labels([2]), "label", "val", find_classes(labels([0, 1]), "label", "train"))


def test_numbers_as_labels() -> None:
    assert read_numbers(labels([1, 2]), "label", "src", F64).dtype == F64
    assert read_numbers(labels([1, 2]), "label", "src", F64, keep_ints=True).dtype == torch.int64
    assert read_numbers(labels([[1.0, 2.0]]), "label", "src", F64).shape == (1, 2)


@pytest.mark.parametrize("values", [["a", "b", "c"] * 40, [0, 1, 2] * 40])
def test_planted_noise_is_wrong_recorded_and_reproducible(values: list[Any]) -> None:
    data = labels(values)
    classes = find_classes(data, "label", "src")
    first = plant_label_noise(data, "label", "src", classes, fraction=0.25, seed=3)
    again = plant_label_noise(data, "label", "src", classes, fraction=0.25, seed=3)
    table = first.data
    assert table[:] == again.data[:]
    assert first.noisy.sum() == 30
    assert table["label_noisy"][:] == first.noisy.tolist()
    assert table["label_clean"][:] == values
    changed = [a != b for a, b in zip(table["label"], table["label_clean"], strict=True)]
    assert changed == first.noisy.tolist()
    assert table.features["label"] == data.features["label"]


def test_noise_needs_room_for_its_columns_and_two_classes() -> None:
    data = Dataset.from_dict({"label": [0, 1], "label_noisy": [0, 0]})
    with pytest.raises(DataError, match="label_noisy, which is there already"):
        plant_label_noise(
            data, "label", "s", find_classes(data, "label", "s"), fraction=0.5, seed=0
        )
    one = labels([0, 0])
    with pytest.raises(DataError, match="label noise needs two"):
        plant_label_noise(one, "label", "s", find_classes(one, "label", "s"), fraction=0.5, seed=0)


def test_dataset_values_of_large_ints_survive() -> None:
    data = Dataset.from_dict({"label": [2**40, 1]}, features=Features({"label": Value("int64")}))
    assert read_numbers(data, "label", "s", F64, keep_ints=True).tolist() == [2**40, 1]


@pytest.mark.parametrize(
    ("values", "feature", "names"),
    [
        (["a", "b"], None, True),
        ([0, 1], datasets.ClassLabel(num_classes=2), True),
        ([0, 1], None, False),
        ([0.5, 1.5], None, False),
    ],
)
def test_which_columns_say_that_they_hold_classes(
    values: list[Any], feature: Any, names: bool
) -> None:
    assert holds_names(labels(values, feature), "label") is names


def test_classes_of_strings_are_numbered_in_the_order_of_the_alphabet() -> None:
    classes = find_classes(labels(["pear", "apple", "pear"]), "label", "src")
    assert classes.names == ("apple", "pear")
    assert read_classes(labels(["apple", "pear"]), "label", "other", classes).tolist() == [0, 1]
