"""Labels as classes or numbers, and noise that is planted among them."""

from datetime import time
from decimal import Decimal
from typing import Any

import datasets
import pytest
import torch
from datasets import Dataset, Features, Value

from curate.datasets import (
    Classes,
    find_classes,
    holds_names,
    pick_rows,
    plant_label_noise,
    read_classes,
    read_numbers,
    rows,
    tensors,
)
from curate.errors import DataError
from curate.runtime import large

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
        (labels([1.0, 0.0, 2.0]), 3, [1, 0, 2]),
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
        (labels([0.0, float("nan")]), "class labels must be ints"),
        (labels([Decimal(0), Decimal(1)]), r"holds Value\('decimal.*class labels must be ints"),
        (labels([time(0), time(1)]), r"holds Value\('time.*class labels must be ints"),
        (labels([b"a", b"b"]), r"holds Value\('binary'\); class labels must be ints"),
    ],
)
def test_bad_labels_are_named_with_their_row(data: Dataset, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_classes(data, "label", "src", find_classes(data, "label", "src"))


def test_labels_of_one_set_may_be_written_as_floats() -> None:
    for train, val in ([0, 1], [1.0, 0.0]), ([0.0, 1.0], [1, 0]), (["0", "1"], [1.0, 0.0]):
        classes = find_classes(labels(train), "label", "train")
        assert read_classes(labels(val), "label", "val", classes).tolist() == [1, 0]


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


def named(values: list[int], names: list[str]) -> Dataset:
    return labels(values, datasets.ClassLabel(names=names))


def test_a_class_is_its_name_and_not_its_number() -> None:
    train = named([0, 1, 0], ["no", "yes"])
    classes = find_classes(train, "label", "train")
    for other, ids in [
        (named([0, 1], ["yes", "no"]), [1, 0]),
        (named([2, 0], ["yes", "maybe", "no"]), [0, 1]),
        (labels(["yes", "no"]), [1, 0]),
        (labels([1, 0]), [1, 0]),
        (train, [0, 1, 0]),
    ]:
        assert read_classes(other, "label", "val", classes).tolist() == ids
    with pytest.raises(DataError, match="column label is 'maybe' at row 1, a label that the train"):
        read_classes(named([0, 1], ["yes", "maybe"]), "label", "val", classes)
    words = find_classes(labels(["no", "yes"]), "label", "train")
    assert read_classes(named([0, 1], ["yes", "no"]), "label", "val", words).tolist() == [1, 0]
    digits = find_classes(labels(["x", "10", "2"]), "label", "train")
    assert read_classes(labels([10, 2]), "label", "val", digits).tolist() == [0, 1]
    with pytest.raises(DataError, match="column label is 0 at row 0, a label that the training"):
        read_classes(labels([0]), "label", "val", words)


def test_numbers_without_names_are_what_they_are() -> None:
    classes = find_classes(labels([0, 2, 1]), "label", "train")
    nameless = labels([2, 0], datasets.ClassLabel(num_classes=3))
    assert read_classes(nameless, "label", "val", classes).tolist() == [2, 0]
    assert read_classes(labels([2, 0]), "label", "val", classes).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("ids_of", "names"),
    [
        ({"yes": 0, "no": 1}, ("yes", "no")),
        ({"YES": 0, "No": 1}, ("yes", "no")),
        ({"yes": 2, "no": 0, "maybe": 1}, ("no", "maybe", "yes")),
        ({"yes": 0, "other": 1}, ("yes", "no")),
        ({"yes": 0, "LABEL_1": 1, "LABEL_2": 2}, ("yes", "no", "LABEL_2")),
        ({"LABEL_0": 0, "LABEL_1": 1}, ("no", "yes")),
        ({"yes": 0}, ("no", "yes")),
        ({"yes": 1, "no": 2}, ("no", "yes")),
        ({}, ("no", "yes")),
    ],
)
def test_a_models_own_numbers_hold(ids_of: dict[str, int], names: tuple[str, ...]) -> None:
    for train in (labels(["no", "yes"]), named([0, 1], ["no", "yes"])):
        classes = find_classes(train, "label", "train", ids_of=ids_of)
        assert (classes.names, classes.count) == (names, len(names))
        ids = read_classes(train, "label", "train", classes).tolist()
        assert [names[i] for i in ids] == ["no", "yes"]
    plain = find_classes(labels([0, 1]), "label", "train", ids_of=ids_of)
    assert read_classes(labels([1, 0]), "label", "train", plain).tolist() == [1, 0]


def test_noise_is_planted_in_the_columns_own_numbers() -> None:
    train = named([0, 1, 2] * 40, ["a", "b", "c"])
    classes = find_classes(train, "label", "s", ids_of={"c": 0, "a": 1, "b": 2})
    planted = plant_label_noise(train, "label", "s", classes, fraction=0.25, seed=3)
    changed = [a != b for a, b in zip(planted.data["label"], train["label"], strict=True)]
    assert changed == planted.noisy.tolist()
    more = find_classes(train, "label", "s", ids_of={"c": 0, "a": 1, "b": 2, "d": 3})
    with pytest.raises(DataError, match="numbers 3 classes, but the model has 4"):
        plant_label_noise(train, "label", "s", more, fraction=0.25, seed=3)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["b", "a", "b", "c"], "string"),
        ([2, 0, 1, 1], "int32"),
        ([2.0, 0.0, 1.0, 1.0], "float64"),
        ([True, False, False, True], "bool"),
    ],
)
def test_by_batches_classes_and_noise_are_the_same(
    values: list[Any], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Dataset.from_dict(
        {"y": values, "n": [*range(4)]},
        features=Features({"y": Value(dtype), "n": Value("int64")}),
    )

    def read() -> list[Any]:
        found = []
        for some in (data, data.select([3, 1, 0]), pick_rows(data, torch.tensor([0, 1, 3]))):
            classes = find_classes(data, "y", "src")
            planted = plant_label_noise(some, "y", "src", classes, fraction=0.5, seed=1)
            ids = read_classes(some, "y", "src", classes).tolist()
            again = read_classes(planted.data, "y", "src", classes).tolist()
            assert again == planted.ids.tolist()
            found.append([classes, ids, again, planted.noisy.tolist(), planted.data.to_list()])
        return found

    whole = read()
    monkeypatch.setattr(rows, "MOST", 1)
    monkeypatch.setattr(tensors, "PIECE", 1)
    monkeypatch.setattr(large, "SMALL", 0)
    assert read() == whole


def test_floats_are_classes_only_if_all_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MOST", 1)
    data = Dataset.from_dict({"y": [1.0, 0.0, 0.5]})
    with pytest.raises(DataError, match="class labels must be ints, strings or ClassLabel"):
        find_classes(data, "y", "src")
    named = Classes(2, ("1.0", "0.5"))
    with pytest.raises(DataError, match=r"column y is 0\.0 at row 1, a label that the training"):
        read_classes(data, "y", "src", named)
    with pytest.raises(DataError, match=r"2 different labels but the largest is 7 \(row 2\)"):
        find_classes(Dataset.from_dict({"y": [0, 0, 7, 7]}), "y", "src")
    with pytest.raises(DataError, match=r"column y is 7 at row 2, but labels must be 0\.\.1"):
        read_classes(Dataset.from_dict({"y": [0, 0, 7, 7]}), "y", "src", Classes(2))
