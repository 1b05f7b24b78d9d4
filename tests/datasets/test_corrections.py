"""Corrected labels stand where they belong, and bad files are told in one line."""

from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features

from curate.datasets import (
    find_classes,
    plant_label_noise,
    read_classes,
    read_corrections,
)
from curate.datasets.corrections import correct_labels
from curate.errors import DataError

NAMED = Features({"label": ClassLabel(names=["cat", "dog", "eel"])})
KINDS: dict[str, tuple[list[Any], Features | None, list[Any]]] = {
    "numbers": ([0, 1, 2, 0], None, [2, 0]),
    "strings": (["a", "b", "c", "a"], None, ["c", "a"]),
    "ClassLabel": ([0, 1, 2, 0], NAMED, ["eel", "cat"]),
    "bool": ([False, True, True, False], None, ["1", "0"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_get_the_labels_that_a_file_has_for_them(kind: str) -> None:
    before, features, words = KINDS[kind]
    data = Dataset.from_dict({"label": before}, features=features)
    classes = find_classes(data, "label", "train")
    fixed = Dataset.from_dict({"row": [3, 1], "label": words})
    rows, ids = read_corrections(fixed, "label", "fixed", classes)
    assert rows.tolist() == [1, 3]
    labels = read_classes(data, "label", "train", classes)
    found = correct_labels(data, "label", classes, (labels, None), rows, ids)
    assert found.changed == 2
    assert found.data["label_read"][:] == before
    assert found.data.features["label"] == data.features["label"]
    expected = labels.clone()
    expected[1], expected[3] = (0, 1) if kind == "bool" else (0, 2)
    assert torch.equal(found.ids, expected)
    assert torch.equal(read_classes(found.data, "label", "found", classes), expected)
    assert torch.equal(read_classes(data, "label", "train", classes), labels)


def test_of_planted_noise_only_what_is_left_counts() -> None:
    data = Dataset.from_dict({"label": [0, 1, 2, 3] * 10})
    classes = find_classes(data, "label", "train")
    planted = plant_label_noise(data, "label", "train", classes, fraction=0.5, seed=0)
    wrong, right = planted.noisy.nonzero()[:, 0], (~planted.noisy).nonzero()[:, 0]
    rows = torch.cat([wrong[:5], right[:2]]).sort().values
    ids = read_classes(planted.data, "label_clean", "", classes)[rows]
    ids[torch.isin(rows, right)] = (ids[torch.isin(rows, right)] + 1) % 4  # right ones made wrong
    found = correct_labels(planted.data, "label", classes, (planted.ids, planted.noisy), rows, ids)
    assert found.noisy is not None
    assert int(found.noisy.sum()) == 20 - 5 + 2
    assert found.data["label_noisy"][:] == found.noisy.tolist()
    assert found.data["label_clean"][:] == data["label"][:]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"row": [1, 4, 1], "label": [0, 1, 0]}, "row 1 is corrected twice; keep one of them"),
        ({"row": [1], "label": [7]}, r"column label is 7 at row 0, but labels must be 0\.\.2"),
        ({"row": [1, 2], "label": ["1", "cat"]}, "column label must hold ints"),
        ({"row": [1, 2], "label": [0, None]}, "label is null"),
        ({"row": [1, None], "label": [0, 1]}, "row is null"),
        ({"row": [0.5], "label": [1]}, "column row holds .*; it must have the numbers of rows"),
        ({"row": ["a"], "label": [1]}, "column row holds .*; it must have the numbers of rows"),
        ({"id": [1], "label": [1]}, "there is no column row; it has id, label"),
        ({"row": [1], "answer": [1]}, "there is no column label; it has row, answer"),
    ],
)
def test_a_bad_file_is_told_in_one_line(columns: dict[str, Any], words: str) -> None:
    classes = find_classes(Dataset.from_dict({"label": [0, 1, 2]}), "label", "train")
    with pytest.raises(DataError, match=words) as error:
        read_corrections(Dataset.from_dict(columns), "label", "fixed.csv", classes)
    assert str(error.value).startswith("fixed.csv: ")
    assert "\n" not in str(error.value)


def test_a_column_that_would_be_hidden_is_not() -> None:
    data = Dataset.from_dict({"label": [0, 1], "label_read": [1, 1]})
    classes = find_classes(data, "label", "train")
    one = torch.ones(1, dtype=torch.int64)
    with pytest.raises(DataError, match="adds column label_read, which is there already"):
        correct_labels(data, "label", classes, (torch.tensor([0, 1]), None), one, one)
