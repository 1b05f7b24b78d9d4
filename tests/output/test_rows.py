"""Rows as what they are, and what was kept of which kind."""

import io
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pytest
from datasets import Dataset

from curate.output.composition import composition
from curate.output.rows import Looks, in_order
from curate.output.words import Unit, cells, fit, plain, shorten, visible, wrap
from tests.output.made import recipe


def shown(table: Dataset, by: Any, row: int = 0) -> list[Any]:
    (content,) = table.with_format("arrow")[row : row + 1].to_pylist()
    return Looks(table.features, by).row(content)


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_what_the_model_saw_comes_first_and_the_label_next() -> None:
    table = Dataset.from_dict({"note": ["n"], "label": [1], "b": [2.0], "a": [[1.0]]})
    order = in_order(table.features, recipe({"features": ["a", "b*"], "label": "label"}))
    assert order.all == ["b", "a", "label", "note"]
    assert order.texts == []
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
    by = recipe(columns, objective="mine:loss", model={"factory": "mine:net"})
    (own,) = shown(table, by)
    assert own.kind == "picture"
    assert own.text == f"5 × 6, {'gray' if channels == 1 else 'color'}"
    assert np.array_equal(np.asarray(own.picture), flat)


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
    own = shown(table, recipe({"text": "text"}))[1]
    assert (own.kind, own.text) == (kind, text)


def test_many_columns_of_numbers_are_drawn_together() -> None:
    table = Dataset.from_dict({"id": ["i"]} | {f"p{i}": [i] for i in range(64)} | {"label": [1]})
    drawn, label, other = shown(table, recipe({"features": ["p*"], "label": "label"}))
    assert (drawn.name, drawn.text) == ("p0 to p63", "64 numbers, 0 to 63, drawn 8 × 8")
    assert (label.name, other.name) == ("label", "id")
    few = table.select_columns([f"p{i}" for i in range(48)])
    by = recipe({"features": ["p*"], "label": None}, objective="mine:loss",
                model={"factory": "mine:net"})  # fmt: skip
    assert len(shown(few, by)) == 48


def test_numbers_that_are_none_are_drawn_light() -> None:
    value = [float("nan"), float("inf"), *map(float, range(62))]
    own = shown(Dataset.from_dict({"text": ["t"], "x": [value]}), recipe({"text": "text"}))[1]
    assert own.text == "64 numbers, 0 to 61, drawn 8 × 8"
    assert np.asarray(own.picture)[0, :3].tolist() == [255, 0, 255]


def test_a_drawing_is_dark_where_numbers_are_high() -> None:
    table = Dataset.from_dict({"text": ["t"], "x": [[float(i) for i in range(64)]]})
    own = shown(table, recipe({"text": "text"}))[1]
    expected = np.round(255 - 255 * np.arange(64).reshape(8, 8) / 63)
    assert np.abs(np.asarray(own.picture).astype(float) - expected).max() <= 1


def test_conversations_keep_their_turns() -> None:
    turns = [{"role": "user", "content": "hi \x07"}, {"role": "assistant", "content": "yes"}]
    table = Dataset.from_dict({"messages": [turns]})
    (own,) = shown(table, recipe({"messages": "messages"}))
    assert own.turns == (("user", "hi \\x07"), ("assistant", "yes"))
    assert Looks(table.features, None).preview([own]) == "user: hi \\x07\nassistant: yes"


def test_planted_noise_is_one_line_and_only_where_it_is() -> None:
    table = Dataset.from_dict(
        {"x": [[1.0], [2.0]], "label": ["a", "b"], "label_clean": ["b", "b"],
         "label_noisy": [True, False]},
    )  # fmt: skip
    by = recipe({"features": ["x"], "label": "label"}, data={"label_noise": {"fraction": 0.5}})
    assert [(own.name, own.text) for own in shown(table, by)] == [
        ("x", "1"), ("label", "a"), ("right label", "b"),
    ]  # fmt: skip
    assert [own.name for own in shown(table, by, 1)] == ["x", "label"]
    assert Looks(table.features, by).preview(shown(table, by)) == "x 1, right label b"


def test_what_was_kept_adds_up() -> None:
    table = Dataset.from_dict(
        {
            "text": ["a" * n for n in (1, 2, 3, 4, 7, 8)],
            "label": ["x", "y", "x", "y", "x", "y"],
            "source": ["web", "web", None, "books", "web", "web"],
            "id": [f"id {i}" for i in range(6)],
        }
    )
    kept = [True, True, False, False, True, False]
    by = recipe({"text": "text", "label": "label"}, objective="sequence_classification")
    found = composition(table, kept, by)
    plain_ = {name: [tuple(part.values()) for part in parts] for name, parts in found.items()}
    assert plain_ == {
        "label": [("x", 3, 2), ("y", 3, 1)],
        "source": [("books", 1, 0), ("web", 4, 3), ("none", 1, 0)],
        "id": [(f"id {i}", 1, int(kept[i])) for i in range(6)],
        "characters": [("1 to 1", 1, 1), ("2 to 3", 2, 1), ("4 to 7", 2, 1), ("8 to 15", 1, 0)],
    }


def test_labels_that_are_numbers_are_in_bins() -> None:
    table = Dataset.from_dict({"x": [[0.0]] * 9, "y": [float(i) for i in range(9)]})
    by = recipe({"features": ["x"], "label": "y"}, objective="regression")
    parts = composition(table, [i < 4 for i in range(9)], by)["y"]
    assert [part["value"] for part in parts][:2] == ["0 to 1", "1 to 2"]
    assert [part["candidates"] for part in parts] == [1] * 7 + [2]
    assert sum(part["kept"] for part in parts) == 4


def test_cells_of_wide_and_combining_characters() -> None:
    assert [cells(t) for t in ("ab", "日本", "e\u0301", "\u200d")] == [2, 4, 1, 0]
    assert fit("日本語", 5) == "日本…"
    assert fit("日本語", 4) == "日… "
    assert fit("ab", 4) == "ab  "
    assert wrap("aa bb cc", 5) == ["aa bb", "cc"]
    assert wrap("日本語日本語", 5) == ["日本", "語日", "本語"]
    assert wrap("a\n\nb", 5) == ["a", "", "b"]
    assert wrap("", 5) == [""]


def test_texts_and_numbers_as_they_are_read() -> None:
    assert visible("a\tb\nc\x1b\x85\u202e\ufeff") == "a\tb\nc\\x1b\\x85\\u202e\\ufeff"
    assert shorten("abcdef", 3) == "abc … (3 more characters)"
    assert [plain(v) for v in (-0.5, 1234.5, 2e-5, -3e9, float("nan"))] == [
        "−0.5", "1,234", "2 × 10⁻⁵", "−3 × 10⁹", "–",
    ]  # fmt: skip
    unit = Unit([2e-4, -3e-4, 0.0])
    assert unit.name == "10⁻⁴"
    assert [unit.write(v) for v in (2e-4, -3.456e-4, None)] == ["+2.00", "−3.46", "–"]
    assert unit.write(2e-4, named=True) == "+2.00 × 10⁻⁴"
    assert Unit([]).write(1.0, signed=False) == "1.000"
