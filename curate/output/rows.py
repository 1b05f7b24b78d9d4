"""Rows as what they are: texts, conversations, pictures, numbers. Loads no torch."""

import fnmatch
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa

from curate.output.words import plain, visible
from curate.recipe import Recipe
from curate.recipe.names import find_objective

FEW_NUMBERS, MORE_NUMBERS = 12, 48
"""Numbers of a list that are shown as digits rather than drawn; up to the second where no square
can be made of them. More columns of numbers than that are taken together as a list."""
SHORT = 40
"""Characters of a string that is shown as a value rather than as a text."""
STRIP = 32
"""Numbers side by side where a list is drawn."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Of pictures; others may be programs, as EPS, which an interpreter outside would run."""
BOMBS = (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning)
Kind = Literal["text", "turns", "picture", "heat", "value"]


@dataclass(frozen=True)
class Order:
    """Names of columns: what the model saw, its texts among them, labels, all else."""

    inputs: list[str]
    texts: list[str]
    labels: list[str]
    others: list[str]

    @property
    def all(self) -> list[str]:
        """Every column, in the order in which a person looks at them."""
        return [*self.inputs, *self.labels, *self.others]


@dataclass(frozen=True)
class Shown:
    """One column of a row, as it can be looked at.

    text: what it says, or what a picture is of; spelled out where characters would do something.
    turns: of a conversation, (role, text). number: with all its digits. picture: of an image, or a
    drawing of numbers (heat), dark where they are high, a pixel each.
    """

    name: str
    kind: Kind
    text: str
    turns: tuple[tuple[str, str], ...] = ()
    number: float | None = None
    picture: PIL.Image.Image | None = None


def in_order(features: datasets.Features, recipe: Recipe | None) -> Order:
    """The columns of a dataset as a recipe uses them; without one, by what they hold."""

    def present(*names: str | None) -> list[str]:
        return [name for name in names if name is not None and name in features]

    if recipe is None:
        labels = present("label")
        inputs = [name for name in features if name not in labels]
        texts = [name for name in inputs if _is_text(features[name])]
        return Order(inputs, texts, labels, [])
    columns = recipe.data.columns
    labels = [] if find_objective(recipe.objective).label is None else present(columns.label)
    inputs = texts = present(*columns.texts)
    if columns.features is not None:
        texts, patterns = [], columns.features
        named = {p for p in patterns if p in features}  # itself, whatever else it would match
        inputs = [
            name
            for name in features
            if name not in labels
            and (name in named or any(fnmatch.fnmatchcase(name, p) for p in {*patterns} - named))
        ]
    others = [name for name in features if name not in inputs + labels]
    return Order(inputs, texts, labels, others)


class RowViewer:
    """How the rows of a dataset look, given the recipe that chose among them.

    label: the column of labels, if there is one.
    """

    def __init__(self, features: datasets.Features, recipe: Recipe | None) -> None:
        order = in_order(features, recipe)
        self.label = next(iter(order.labels), None)
        self._texts = order.texts
        self._features = features
        self._shape = None if recipe is None else recipe.data.columns.image_shape
        numbers = [name for name in order.inputs if _is_number(features[name])]
        self._together = numbers if len(numbers) > MORE_NUMBERS else []
        hidden = [*self._together]
        noise = None if recipe is None else recipe.data.label_noise
        self._planted = noise is not None and self.label is not None
        if self._planted:
            hidden += [f"{self.label}_clean", f"{self.label}_noisy"]
        self._apart = [name for name in order.all if name not in hidden]

    def view(self, content: Mapping[str, Any]) -> list[Shown]:
        """The columns of a row as it is stored, in order."""
        shown = [self._show(name, content[name]) for name in self._apart]
        if self._together:
            name = f"{self._together[0]} to {self._together[-1]}"
            shown.insert(0, _list(visible(name), [content[column] for column in self._together]))
        if self._planted and content[f"{self.label}_noisy"]:
            clean = self._value(f"{self.label}_clean", content)
            shown.append(Shown(f"right {visible(str(self.label))}", "value", clean))
        return shown

    def label_of(self, content: Mapping[str, Any]) -> str | None:
        """The label of a row in words."""
        return None if self.label is None else self._value(self.label, content)

    def preview(self, shown: Sequence[Shown]) -> str:
        """What identifies a row in a list: its first texts, or its first values but the label."""
        texts = [column.text for column in shown if column.kind in ("text", "turns")]
        if texts:
            return " → ".join(texts[:2])
        values = [c for c in shown if c.kind == "value" and c.name != self.label]
        return ", ".join(f"{column.name} {column.text}" for column in values[:6])

    def _value(self, name: str, content: Mapping[str, Any]) -> str:
        return visible(in_words(content[name], self._features[name]))

    def _show(self, column: str, value: Any) -> Shown:
        name, feature = visible(column), self._features[column]
        if type(feature).__name__ == "Json" and isinstance(value, str):
            value = json.loads(value)
        if value is None or value == []:
            return Shown(name, "value", "none" if value is None else "empty")
        if isinstance(feature, datasets.Image) and isinstance(value, dict):
            value = value["bytes"]
        if isinstance(value, str):
            long = column in self._texts or len(value) > SHORT or "\n" in value
            return Shown(name, "text" if long else "value", visible(value))
        if isinstance(value, bytes):
            return _bytes(name, value, self._shape)
        if _is_conversation(value):
            turns = tuple(
                (visible(str(turn["role"])), visible(str(turn["content"] or ""))) for turn in value
            )
            return Shown(name, "turns", "\n".join(f"{role}: {text}" for role, text in turns), turns)
        if isinstance(value, list):
            return _list(name, value)
        number = value if type(value) is float else None
        return Shown(name, "value", visible(in_words(value, feature)), number=number)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_number(feature: Any) -> bool:
    kinds = ("int", "uint", "float")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value
    )


def in_python(cells: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Cells as Python has them; in words where it has none, as for dates beyond the year 9999."""
    try:
        return list(cells.to_pylist())
    except (OverflowError, ValueError):
        return [_cell(cell) for cell in cells]


def _cell(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (OverflowError, ValueError):
        if isinstance(cell, pa.StructScalar):
            return {name: _cell(inner) for name, inner in cell.items()}
        if isinstance(cell, pa.ListScalar):
            return [_cell(inner) for inner in cell]
        return cell.cast(pa.string()).as_py()


def in_words(value: Any, feature: Any) -> str:
    """A value of a column: the name of a class, yes or no, three digits of a number."""
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int) and value >= 0:
        return str(feature.int2str(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain(value) if isinstance(value, float) else str(value)


def _bytes(name: str, value: bytes, shape: Sequence[int] | None) -> Shown:
    """A picture, gray or in color, if the bytes are one: of a file, or pixels of that shape."""
    image = None
    no_bombs = warnings.catch_warnings(action="error", category=PIL.Image.DecompressionBombWarning)
    try:
        if shape is not None and len(value) == np.prod(shape) and {*shape[2:]} <= {1, 3}:
            pixels = np.frombuffer(value, dtype=np.uint8).reshape(shape)
            image = PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)
        else:
            with no_bombs:
                image = PIL.Image.open(io.BytesIO(value), formats=FORMATS)
        image = _as_seen(image)
    except (OSError, TypeError, ValueError, *BOMBS):
        return Shown(name, "value", f"{len(value):,} bytes")
    size = f"{image.width} × {image.height}, {'gray' if image.mode == 'L' else 'color'}"
    return Shown(name, "picture", size, picture=image)


def _as_seen(image: PIL.Image.Image) -> PIL.Image.Image:
    """A picture in 8 bits, gray or in color, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        shades = np.asarray(image, dtype=np.float64) / (1 if image.mode == "F" else 65535)
        return PIL.Image.fromarray((255 * shades.clip(0, 1)).round().astype(np.uint8))
    if image.has_transparency_data:
        ground = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(ground, image.convert("RGBA"))
    return image.copy() if image.mode == "L" else image.convert("RGB")


def _list(name: str, value: list[Any]) -> Shown:
    """Numbers as digits, or drawn: matrices as they are, squares where a list is one, else rows."""
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        return Shown(name, "value", visible(str(value)))
    digits = ", ".join(plain(float(number)) for number in numbers.ravel()[:MORE_NUMBERS])
    if numbers.size <= FEW_NUMBERS:
        return Shown(name, "value", digits)
    grid = _grid(numbers)
    if numbers.ndim == 1 and grid.shape[0] != grid.shape[1] and numbers.size <= MORE_NUMBERS:
        return Shown(name, "text", digits)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    text = (
        f"{' × '.join(map(str, numbers.shape))} numbers, {plain(low)} to {plain(high)}, "
        f"drawn {grid.shape[1]} × {grid.shape[0]}"
    )
    bounded = np.nan_to_num(np.clip(grid, low, high), nan=low)
    shades = 255 - 255 * (bounded - low) / (high - low or 1.0)
    return Shown(name, "heat", text, picture=PIL.Image.fromarray(shades.astype(np.uint8)))


def _grid(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if numbers.ndim == 2:
        return numbers
    flat = numbers.ravel()
    side = round(flat.size**0.5)
    width = side if side * side == flat.size and side >= 4 else min(flat.size, STRIP)
    padded = np.full(-(-flat.size // width) * width, np.nan)
    padded[: flat.size] = flat
    return padded.reshape(-1, width)
