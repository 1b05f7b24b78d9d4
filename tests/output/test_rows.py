"""Rows as what they are."""

import io
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
from datasets import Dataset

from curate.output.rows import RowViewer, in_order, in_python
from tests.output.made import recipe

BY_LOSS: dict[str, Any] = {"objective": "mine:loss", "model": {"factory": "mine:net"}}


def shown(table: Dataset, by: Any, row: int = 0) -> list[Any]:
    (content,) = table.with_format("arrow")[row : row + 1].to_pylist()
    return RowViewer(table.features, by).view(content)


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_what_the_model_saw_comes_first_and_the_label_next() -> None:
    table = Dataset.from_dict({"note": ["n"], "label": [1], "b": [2.0], "a": [[1.0]]})
    order = in_order(table.features, recipe({"features": ["a", "b*"], "label": "label"}))
    assert order.all == ["b", "a", "label", "note"]
    assert order.texts == []
    table = Dataset.from_dict({"label": [1], "x0": [2.0], "x[0]": [1.0]})
    order = in_order(table.features, recipe({"features": ["x[0]"], "label": "label"}))
    assert order.all == ["x[0]", "label", "x0"]
    table = Dataset.from_dict({"x": ["x"], "answer": ["y"], "question": ["z"]})
    order = in_order(table.features, recipe({"prompt": "question", "completion": "answer"}))
    assert order.all == ["question", "answer", "x"]
    assert in_order(table.features, None).texts == ["x", "answer", "question"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["image", "bytes", "raw"])
def test_pictures_are_those_pixels(kind: str, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 5, channels), dtype=np.uint8)
    flat = pixels[:, :, 0] if channels == 1 else pixels
    feature = datasets.Image() if kind == "image" else datasets.Value("binary")
    cell = pixels.tobytes() if kind == "raw" else png(flat)
    value = {"bytes": cell, "path": None} if kind == "image" else cell
    table = Dataset.from_dict({"x": [value]}, features=datasets.Features({"x": feature}))
    columns: dict[str, Any] = {"features": ["x"], "label": None}
    if kind == "raw":
        columns["image_shape"] = [6, 5, channels]
    by = recipe(columns, **BY_LOSS)
    (column,) = shown(table, by)
    assert column.kind == "picture"
    assert column.text == f"5 × 6, {'gray' if channels == 1 else 'color'}"
    assert np.array_equal(np.asarray(column.picture), flat)


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        ([1.0, 2.5], "value", "1, 2.5"),
        ([float(i) for i in range(30)], "text", ", ".join(str(i) for i in range(30))),
        ([float(i) for i in range(64)], "heat", "64 numbers, 0 to 63, drawn 8 × 8"),
        ([float(i) for i in range(70)], "heat", "70 numbers, 0 to 69, drawn 32 × 3"),
        ([[0.0, 1.0]] * 20, "heat", "20 × 2 numbers, 0 to 1, drawn 2 × 20"),
        ([], "value", "empty"),
        ([float("nan")] * 64, "heat", "64 numbers, 0 to 0, drawn 8 × 8"),
        ([0.0] * 64, "heat", "64 numbers, 0 to 0, drawn 8 × 8"),
        ("short", "value", "short"),
        ("long " * 20, "text", "long " * 20),
        ("\x1b[0m", "value", "\\x1b[0m"),
        (b"abc", "value", "3 bytes"),
        (None, "value", "none"),
        (True, "value", "yes"),
        (1234567, "value", "1234567"),
        (1e-9, "value", "1 × 10⁻⁹"),
        ({"a": 1}, "value", "{'a': 1}"),
        (["a", "b"], "value", "['a', 'b']"),
    ],
)
def test_values_by_what_they_are(value: Any, kind: str, text: str) -> None:
    table = Dataset.from_dict({"text": ["t"], "x": [value]})
    column = shown(table, recipe({"text": "text"}))[1]
    assert (column.kind, column.text) == (kind, text)


def test_many_columns_of_numbers_are_drawn_together() -> None:
    table = Dataset.from_dict({"id": ["i"]} | {f"p{i}": [i] for i in range(64)} | {"label": [1]})
    drawn, label, other = shown(table, recipe({"features": ["p*"], "label": "label"}))
    assert (drawn.name, drawn.text) == ("p0 to p63", "64 numbers, 0 to 63, drawn 8 × 8")
    assert (label.name, other.name) == ("label", "id")
    few = table.select_columns([f"p{i}" for i in range(48)])
    by = recipe({"features": ["p*"], "label": None}, **BY_LOSS)
    assert len(shown(few, by)) == 48


def test_numbers_that_are_none_are_drawn_light() -> None:
    value = [float("nan"), float("inf"), *map(float, range(62))]
    column = shown(Dataset.from_dict({"text": ["t"], "x": [value]}), recipe({"text": "text"}))[1]
    assert column.text == "64 numbers, 0 to 61, drawn 8 × 8"
    assert np.asarray(column.picture)[0, :3].tolist() == [255, 0, 255]


def test_a_drawing_is_dark_where_numbers_are_high() -> None:
    table = Dataset.from_dict({"text": ["t"], "x": [[float(i) for i in range(64)]]})
    column = shown(table, recipe({"text": "text"}))[1]
    expected = np.round(255 - 255 * np.arange(64).reshape(8, 8) / 63)
    assert np.abs(np.asarray(column.picture).astype(float) - expected).max() <= 1


def test_conversations_keep_their_turns() -> None:
    turns = [{"role": "user", "content": "hi \x07"}, {"role": "assistant", "content": "yes"}]
    table = Dataset.from_dict({"messages": [turns]})
    (column,) = shown(table, recipe({"messages": "messages"}))
    assert column.turns == (("user", "hi \\x07"), ("assistant", "yes"))
    assert RowViewer(table.features, None).preview([column]) == "user: hi \\x07\nassistant: yes"


def test_planted_noise_is_one_line_and_only_where_it_is() -> None:
    labels = {"label": ["a", "b"], "label_clean": ["b", "b"], "label_noisy": [True, False]}
    table = Dataset.from_dict({"x": [[1.0], [2.0]]} | labels)
    by = recipe({"features": ["x"], "label": "label"}, data={"label_noise": {"fraction": 0.5}})
    noisy = [(column.name, column.text) for column in shown(table, by)]
    assert noisy == [("x", "1"), ("label", "a"), ("right label", "b")]
    assert [column.name for column in shown(table, by, 1)] == ["x", "label"]
    assert RowViewer(table.features, by).preview(shown(table, by)) == "x 1, right label b"


def test_bytes_that_are_no_picture_are_counted() -> None:
    """Of a file cut short, of text, and of pixels with a number of channels that is no color."""
    whole = png(np.zeros((6, 5), dtype=np.uint8))
    columns = {"features": ["x"], "label": None, "image_shape": [6, 5, 2]}
    for cell in (whole[: len(whole) // 2], b"text", bytes(60)):
        features = datasets.Features({"x": datasets.Value("binary")})
        table = Dataset.from_dict({"x": [cell]}, features=features)
        (column,) = shown(table, recipe(columns, **BY_LOSS))
        assert (column.kind, column.text) == ("value", f"{len(cell)} bytes")


def test_a_picture_of_more_pixels_than_are_worth_it_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = png(np.zeros((8, 8), dtype=np.uint8))
    table = Dataset.from_dict({"a": [cell]})
    assert shown(table, None)[0].kind == "picture"
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 60)  # a warning from here, an error at twice
    assert shown(table, None)[0].text == f"{len(cell)} bytes"


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (pa.date32(), "10000-01-01"),
        (pa.timestamp("s", "UTC"), "10000-01-01 00:00:00Z"),
        (pa.duration("s"), "253402300800000"),
    ],
)
def test_times_that_python_does_not_have_are_words(kind: pa.DataType, word: str) -> None:
    days = 2932897
    number = {"date32[day]": days, "duration[s]": days * 86400 * 1000}.get(str(kind), days * 86400)
    far = pa.array([number, None], pa.int32() if kind == pa.date32() else pa.int64()).cast(kind)
    assert in_python(far) == [word, None]
    nested = pa.StructArray.from_arrays([far, pa.array([1, 2])], ["t", "n"])
    lists = pa.ListArray.from_arrays(pa.array([0, 2], pa.int32()), nested)
    assert in_python(lists) == [[{"t": word, "n": 1}, {"t": None, "n": 2}]]
    assert in_python(pa.array(["a", None])) == ["a", None]


def test_pictures_of_16_bits_floats_and_alpha_are_shown_as_they_look() -> None:
    ramp = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    tiff = io.BytesIO()
    PIL.Image.fromarray((ramp / 255).astype(np.float32)).save(tiff, "TIFF")
    alpha = np.dstack([np.zeros((4, 4, 3), np.uint8), ramp])
    cells = [png(ramp.astype(np.uint16) * 257), tiff.getvalue(), png(alpha)]
    table = Dataset.from_dict({"x": cells})
    by = recipe({"features": ["x"], "label": None}, **BY_LOSS)
    for row, expected in enumerate([ramp, ramp, 255 - ramp]):
        (column,) = shown(table, by, row)
        pixels = np.asarray(column.picture)
        assert np.array_equal(pixels if pixels.ndim == 2 else pixels[..., 0], expected)


def test_conversations_in_a_column_of_json_are_conversations() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"text": "b"}]}]
    table = Dataset.from_dict(
        {"messages": [turns]}, features=datasets.Features({"messages": datasets.Json()})
    )
    (column,) = shown(table, recipe({"messages": "messages"}))
    assert [role for role, _ in column.turns] == ["user", "assistant"]


def test_a_picture_that_is_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    (column,) = shown(Dataset.from_dict({"a": [program]}), None)
    assert (column.kind, column.text) == ("value", f"{len(program)} bytes")
