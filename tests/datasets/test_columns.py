"""Columns to tensors, and the first offending row by number."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value

from curate.datasets import match_features, read_features, require_columns, rows, tensors
from curate.datasets.columns import holds_strings, refuse_nulls
from curate.errors import DataError
from curate.runtime import large

F64 = torch.float64


def features(columns: dict[str, Any], names: list[str], **options: Any) -> torch.Tensor:
    return read_features(Dataset.from_dict(columns), names, "src", dtype=F64, **options)


def test_numbers_and_lists_side_by_side() -> None:
    table = features(
        {"a": [1, 2], "b": [[0.5, 1.5], [2.5, 3.5]], "c": [True, False]}, ["a", "b", "c"]
    )
    assert table.tolist() == [[1, 0.5, 1.5, 1], [2, 2.5, 3.5, 0]]


def test_many_columns_are_asked_once_what_they_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    known = Dataset.features.fget
    monkeypatch.setattr(Dataset, "features", property(lambda d: asked.append(1) or known(d)))
    counts = []
    for width in (2, 200):
        data, before = Dataset.from_dict({f"p{k}": [k, k + 1] for k in range(width)}), len(asked)
        names = match_features(data, ["p*"], [], "src")
        read = read_features(data, names, "src", dtype=F64)
        assert read.tolist() == [[*range(width)], [*range(1, width + 1)]]
        counts.append(len(asked) - before)
    assert counts[0] == counts[1]


def test_nested_lists_and_array_features_keep_their_shape() -> None:
    cube = np.arange(12.0).reshape(2, 2, 3)
    assert features({"a": cube.tolist()}, ["a"]).tolist() == cube.tolist()
    declared = Features({"a": datasets.Array2D((2, 3), "float32")})
    data = Dataset.from_dict({"a": cube}, features=declared)
    assert read_features(data, ["a"], "src", dtype=F64).tolist() == cube.tolist()


def test_rows_picked_and_shuffled_stay_in_step() -> None:
    data = Dataset.from_dict({"a": [[0.0], [1.0], [2.0], [3.0]]}).select([3, 1])
    assert read_features(data, ["a"], "src", dtype=F64).flatten().tolist() == [3, 1]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"a": [1.0, None, 2.0]}, "column a is null at row 1"),
    ({"a": [1.0, 2.0, float("nan")]}, "column a is NaN or infinite at row 2"),
    ({"a": [[1.0, 2.0], [1.0, float("inf")]]}, "column a is NaN or infinite at row 1"),
    (
        {"a": [[1.0, 2.0], [3.0]]},
        r"lists of different lengths, first at row 1 \(1 instead of 2\)",
    ),
    ({"a": [[[1.0], [2.0]], [[1.0], [2.0, 3.0]]]}, "different lengths, first at row 1"),
    ({"a": [[1.0, 2.0], [3.0, None]]}, "null inside the list at row 1"),
    ({"a": [[], []]}, r"holds empty lists \(2 rows\)"),
    ({"a": [[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [None, 4.0]]]}, "inside the list at row 1"),
    ({"a": [[["x"]]]}, r"column a holds list<.*string.*>; features must be numbers"),
    ({"a": ["x", "y"]}, "column a holds string; features must be numbers"),
    ({"b": [1.0]}, "there is no column a; it has b"),
]


@pytest.mark.parametrize(("columns", "message"), WRONG)
def test_what_is_wrong_is_named_with_its_row(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        features(columns, ["a"])


def test_patterns_choose_columns_but_never_the_label() -> None:
    data = Dataset.from_dict({n: [0] for n in ("f1", "f2", "g", "label")})
    assert match_features(data, ["f*", "g", "f1"], ["label"], "src") == ["f1", "f2", "g"]
    with pytest.raises(DataError, match="no column matches label"):
        match_features(data, ["label"], ["label"], "src")


def test_a_pattern_that_is_a_name_means_that_column() -> None:
    data = Dataset.from_dict({n: [0] for n in ("x[0]", "x0", "x[1]", "a*", "ab")})
    assert match_features(data, ["x[0]", "a*"], [], "src") == ["x[0]", "a*"]
    assert match_features(data, ["x[01]"], [], "src") == ["x0"]


def test_the_row_that_is_no_number_is_named() -> None:
    with pytest.raises(DataError, match=r"features must be numbers.*, but row 2 is 'NA'"):
        features({"a": ["1", "2.5", "NA"]}, ["a"])
    with pytest.raises(DataError, match=r"features must be numbers.*, but row 4 is '0x1F'"):
        features({"a": ["007", "+2", " .5", "1.", "0x1F"]}, ["a"])


def test_numbers_in_a_column_of_json_are_numbers() -> None:
    declared = Features({"a": datasets.Json()})
    data = Dataset.from_dict({"a": [[2**53 + 1, 0.5], [1, 2]]}, features=declared)
    read = read_features(data, ["a"], "src", dtype=F64)
    assert read.tolist() == [[2.0**53, 0.5], [1, 2]]
    data = Dataset.from_dict({"a": [1, "oops"]}, features=declared)
    with pytest.raises(DataError, match=r"features must be numbers.*, but row 1 is '\"oops\"'"):
        read_features(data, ["a"], "src", dtype=F64)


def test_integers_that_float64_holds_survive_and_bool_is_a_number() -> None:
    data = Dataset.from_dict({"a": [2**52 + 1, 3], "b": [True, False]})
    read = read_features(data, ["a", "b"], "src", dtype=torch.int64)
    assert read.tolist() == [[2**52 + 1, 1], [3, 0]]


def test_a_number_too_large_for_the_dtype_is_refused() -> None:
    data = Dataset.from_dict({"a": [1.0, 1e300]})
    assert read_features(data, ["a"], "src", dtype=F64).tolist() == [[1.0], [1e300]]
    with pytest.raises(DataError, match="column a is NaN or infinite at row 1"):
        read_features(data, ["a"], "src", dtype=torch.float32)


def test_images_stay_bytes_and_do_not_mix_with_numbers() -> None:
    columns = {"image": [b"ab"], "a": [1.0]}
    pixels = features(columns, ["image"], image_shape=[1, 2])
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (1, 1, 1, 2))
    with pytest.raises(DataError, match=r"cannot be mixed with others; .* chose image, a"):
        features(columns, ["image", "a"], image_shape=[1, 2])


@pytest.mark.parametrize("form", ["columns", "list", "nested"])
@pytest.mark.parametrize("shape", [[2, 3], [2, 3, 1], [1, 2, 3]])
def test_numbers_are_the_pixels_that_bytes_would_be(form: str, shape: list[int]) -> None:
    raw = np.arange(24, dtype=np.uint8).reshape(4, 6)
    expected = features({"image": [row.tobytes() for row in raw]}, ["image"], image_shape=shape)
    columns: dict[str, Any] = {f"x{k}": raw[:, k].tolist() for k in range(6)}
    if form != "columns":
        columns = {"x": (raw if form == "list" else raw.reshape(4, *shape)).tolist()}
    found = features(columns, [*columns], image_shape=shape)
    torch.testing.assert_close(found, expected.to(found.dtype))
    with pytest.raises(DataError, match=r"row has 6 numbers, but .*image_shape \[5, 5\] needs 25"):
        features(columns, [*columns], image_shape=[5, 5])


def test_columns_that_are_required() -> None:
    data = Dataset.from_dict({"a": [1], "b": [None]})
    require_columns(data, ["b", "a"], "src")
    with pytest.raises(DataError, match="src: there is no column c; it has a, b"):
        require_columns(data, ["a", "c"], "src")
    refuse_nulls(data, "a", "src")
    with pytest.raises(DataError, match="src: column b is null at row 0; fill it or drop the row"):
        refuse_nulls(data, "b", "src")


@pytest.mark.parametrize(
    ("feature", "strings"),
    [
        (Value("string"), True),
        (Value("large_string"), True),
        (Value("int64"), False),
        (datasets.List(Value("string")), False),
        (datasets.ClassLabel(names=["a"]), False),
    ],
)
def test_which_features_hold_strings(feature: Any, strings: bool) -> None:
    assert holds_strings(feature) is strings


@pytest.fixture
def in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time, in files."""
    monkeypatch.setattr(rows, "PIECE", 1)
    monkeypatch.setattr(rows, "MOST", 1)
    monkeypatch.setattr(tensors, "PIECE", 1)
    monkeypatch.setattr(large, "SMALL", 0)


@pytest.mark.usefixtures("in_batches")
def test_by_batches_the_first_null_is_named() -> None:
    data = Dataset.from_dict({"a": [1, 2, None, 4, None]})
    for some, row in ((data, 2), (data.select([0, 1, 3, 4]), 3)):
        with pytest.raises(DataError, match=f"src: column a is null at row {row}; fill it"):
            refuse_nulls(some, "a", "src")
    refuse_nulls(data.select([3, 0]), "a", "src")


@pytest.mark.usefixtures("in_batches")
def test_by_batches_the_numbers_are_the_same() -> None:
    test_numbers_and_lists_side_by_side()
    test_nested_lists_and_array_features_keep_their_shape()
    test_rows_picked_and_shuffled_stay_in_step()
    test_numbers_in_a_column_of_json_are_numbers()
    test_integers_that_float64_holds_survive_and_bool_is_a_number()
    test_a_number_too_large_for_the_dtype_is_refused()
    test_images_stay_bytes_and_do_not_mix_with_numbers()
    test_the_row_that_is_no_number_is_named()


@pytest.mark.usefixtures("in_batches")
@pytest.mark.parametrize(("columns", "message"), WRONG)
def test_by_batches_what_is_wrong_is_named_alike(columns: dict[str, Any], message: str) -> None:
    test_what_is_wrong_is_named_with_its_row(columns, message)


def test_the_fault_that_is_named_does_not_depend_on_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Lengths come first, then nulls within, then what is no number, wherever they are."""
    columns = {"a": [[1.0, 2.0], [float("nan"), 1.0], [1.0, None], [3.0]]}
    for most in (100, 1):
        monkeypatch.setattr(rows, "MOST", most)
        with pytest.raises(DataError, match="lists of different lengths, first at row 3"):
            features(columns, ["a"])
        with pytest.raises(DataError, match="null inside the list at row 2"):
            features({"a": columns["a"][:3]}, ["a"])
