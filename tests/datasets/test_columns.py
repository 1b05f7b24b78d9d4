"""Columns to tensors, and the first offending row by number."""

import io
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Value

from curate.datasets import (
    Scaling,
    TensorExamples,
    find_classes,
    match_features,
    plant_label_noise,
    read_classes,
    read_features,
    read_numbers,
)
from curate.errors import DataError

F64 = torch.float64


def features(columns: dict[str, Any], names: list[str], **options: Any) -> torch.Tensor:
    return read_features(Dataset.from_dict(columns), names, "src", dtype=F64, **options)


def test_numbers_and_lists_side_by_side() -> None:
    found = features(
        {"a": [1, 2], "b": [[0.5, 1.5], [2.5, 3.5]], "c": [True, False]}, ["a", "b", "c"]
    )
    assert found.tolist() == [[1, 0.5, 1.5, 1], [2, 2.5, 3.5, 0]]


def test_nested_lists_and_array_features_keep_their_shape() -> None:
    cube = np.arange(12.0).reshape(2, 2, 3)
    assert features({"a": cube.tolist()}, ["a"]).tolist() == cube.tolist()
    declared = Features({"a": datasets.Array2D((2, 3), "float32")})
    data = Dataset.from_dict({"a": cube}, features=declared)
    assert read_features(data, ["a"], "src", dtype=F64).tolist() == cube.tolist()


def test_rows_picked_and_shuffled_stay_in_step() -> None:
    data = Dataset.from_dict({"a": [[0.0], [1.0], [2.0], [3.0]]}).select([3, 1])
    assert read_features(data, ["a"], "src", dtype=F64).flatten().tolist() == [3, 1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0, None, 2.0]}, "column a is null at row 1"),
        ({"a": [1.0, 2.0, float("nan")]}, "column a is NaN or infinite at row 2"),
        ({"a": [[1.0, 2.0], [1.0, float("inf")]]}, "column a is NaN or infinite at row 1"),
        (
            {"a": [[1.0, 2.0], [3.0]]},
            r"lists of different lengths, first at row 1 \(1 instead of 2\)",
        ),
        ({"a": [[[1.0], [2.0]], [[1.0], [2.0, 3.0]]]}, "different lengths, first at row 1"),
        ({"a": [[1.0, 2.0], [3.0, None]]}, "null inside the list at row 1"),
        ({"a": [[], []]}, "holds empty lists"),
        ({"a": ["x", "y"]}, "column a holds string; features must be numbers"),
        ({"b": [1.0]}, "there is no column a; it has b"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        features(columns, ["a"])


def test_patterns_choose_columns_but_never_the_label() -> None:
    data = Dataset.from_dict({n: [0] for n in ("f1", "f2", "g", "label")})
    assert match_features(data, ["f*", "g", "f1"], ["label"], "src") == ["f1", "f2", "g"]
    with pytest.raises(DataError, match="no column matches label"):
        match_features(data, ["label"], ["label"], "src")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


GRAY = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
RGB = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


@pytest.mark.parametrize("kind", ["raw", "encoded", "image"])
@pytest.mark.parametrize("color", [False, True], ids=["gray", "rgb"])
def test_images_become_bytes_with_channels_first(kind: str, color: bool) -> None:
    pixels = RGB if color else GRAY
    shape = None
    if kind == "raw":
        data = Dataset.from_dict({"image": [p.tobytes() for p in pixels]})
        shape = list(pixels.shape[1:])
    elif kind == "encoded":
        data = Dataset.from_dict({"image": [png(p) for p in pixels]})
    else:
        data = Dataset.from_dict(
            {"image": [PIL.Image.fromarray(p) for p in pixels]},
            features=Features({"image": datasets.Image()}),
        )
    found = read_features(data, ["image"], "src", dtype=F64, image_shape=shape)
    expected = pixels if color else pixels[..., None]
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.moveaxis(expected, 3, 1))


def test_raw_images_in_a_column_of_fixed_size() -> None:
    cells = pa.array([bytes(range(4)), bytes(range(4, 8))], type=pa.binary(4))
    data = Dataset(pa.table({"image": cells}))
    found = read_features(data, ["image"], "src", dtype=F64, image_shape=[2, 2])
    assert found.flatten().tolist() == list(range(8))


def test_image_errors_name_the_row() -> None:
    good = png(GRAY[0])
    with pytest.raises(DataError, match="column image, row 1: not an image that can be decoded"):
        features({"image": [good, b"junk"]}, ["image"])
    with pytest.raises(DataError, match=r"row 1: the image is 2x2x1 but the first one is 3x4x1"):
        features({"image": [good, png(np.zeros((2, 2), np.uint8))]}, ["image"])
    with pytest.raises(DataError, match=r"row 1: 3 bytes, but data.columns.image_shape \[2, 2\]"):
        features({"image": [b"1234", b"123"]}, ["image"], image_shape=[2, 2])
    with pytest.raises(DataError, match="cannot be mixed with others"):
        features({"image": [good], "a": [1.0]}, ["image", "a"])


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


def test_scaling_standardizes_and_leaves_constants_at_zero() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0]], dtype=F64)
    examples = TensorExamples(values, None, torch.arange(2), dtype=F64)
    scaled = examples.standardized_by(Scaling.standardizing(values, F64)).all_features()
    assert scaled.tolist() == [[-1, 0], [1, 0]]


def test_bytes_become_floats_between_zero_and_one() -> None:
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    batch = TensorExamples(pixels, None, torch.arange(1)).batch(
        torch.tensor([0]), torch.device("cpu")
    )
    assert batch["features"].flatten().tolist() == [0.0, 1.0]
    assert "label" not in batch


def test_dataset_values_of_large_ints_survive() -> None:
    data = Dataset.from_dict({"label": [2**40, 1]}, features=Features({"label": Value("int64")}))
    assert read_numbers(data, "label", "s", F64, keep_ints=True).tolist() == [2**40, 1]
