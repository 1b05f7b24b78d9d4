"""Rows as what they are: texts, conversations, pictures, numbers. Loads no torch."""

import fnmatch
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import PIL.Image

from curate.output.words import plain, visible
from curate.recipe import Recipe

FEW_NUMBERS, MORE_NUMBERS = 12, 48
"""Numbers of a list that are shown as digits rather than drawn; up to the second where no square
can be made of them. More columns of numbers than that are taken together as a list."""
SHORT = 40
"""Characters of a string that is shown as a value rather than as a text."""
STRIP = 32
"""Numbers side by side where a list is drawn."""
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
    turns: of a conversation, (role, text). picture: of an image, or a drawing of numbers (heat),
    dark where they are high, a pixel each.
    """

    name: str
    kind: Kind
    text: str
    turns: tuple[tuple[str, str], ...] = ()
    picture: PIL.Image.Image | None = None


def in_order(features: datasets.Features, recipe: Recipe | None) -> Order:
    """The columns of a dataset as a recipe uses them; without one, by what they hold."""
    names = list(features)
    texts = [name for name in names if _is_text(features[name])]
    if recipe is None:
        label = [name for name in ("label",) if name in names]
        inputs = [name for name in names if name not in label]
        return Order(inputs, [name for name in texts if name in inputs], label, [])
    columns = recipe.data.columns
    uses_label = recipe.objective != "causal_lm"
    used = columns.label if uses_label else None
    label = [used] if used is not None and used in features else []
    if columns.features is not None:
        patterns = columns.features
        inputs = [
            name
            for name in names
            if name not in label and any(fnmatch.fnmatchcase(name, p) for p in patterns)
        ]
        texts = []
    else:
        given = (columns.text, columns.prompt, columns.completion, columns.messages)
        inputs = texts = [name for name in given if name is not None and name in features]
    return Order(inputs, texts, label, [name for name in names if name not in inputs + label])


class Looks:
    """How the rows of a dataset look, given the recipe that chose among them.

    order: of their columns. label: the column of labels, if there is one.
    """

    def __init__(self, features: datasets.Features, recipe: Recipe | None) -> None:
        self.order = in_order(features, recipe)
        self.label = next(iter(self.order.labels), None)
        self._features = features
        self._shape = None if recipe is None else recipe.data.columns.image_shape
        self._planted = (
            recipe is not None and recipe.data.label_noise is not None and self.label is not None
        )
        numbers = [name for name in self.order.inputs if _is_number(features[name])]
        self._together = numbers if len(numbers) > MORE_NUMBERS else []
        hidden = {*self._together}
        if self._planted:
            hidden |= {f"{self.label}_clean", f"{self.label}_noisy"}
        self._apart = [name for name in self.order.all if name not in hidden]

    def row(self, content: Mapping[str, Any]) -> list[Shown]:
        """The columns of a row as it is stored, in order."""
        found = [
            _show(visible(name), content[name], self._features[name], self._shape,
                  is_text=name in self.order.texts)
            for name in self._apart
        ]  # fmt: skip
        if self._together:
            name = f"{self._together[0]} to {self._together[-1]}"
            found.insert(0, _list(visible(name), [content[own] for own in self._together]))
        if self._planted and content[f"{self.label}_noisy"]:
            clean = self._value(content, f"{self.label}_clean")
            found.append(Shown(f"right {visible(str(self.label))}", "value", clean))
        return found

    def label_of(self, content: Mapping[str, Any]) -> str | None:
        """The label of a row in words."""
        return None if self.label is None else self._value(content, self.label)

    def preview(self, shown: Sequence[Shown]) -> str:
        """What identifies a row in a list: its first texts, or its first values but the label."""
        texts = [own.text for own in shown if own.kind in ("text", "turns")]
        if texts:
            return " → ".join(texts[:2])
        values = [own for own in shown if own.kind == "value" and own.name != self.label]
        return ", ".join(f"{own.name} {own.text}" for own in values[:6])

    def _value(self, content: Mapping[str, Any], name: str) -> str:
        return visible(_value(content[name], self._features[name]))


def characters(value: Any) -> int:
    """The length of a text or of all that is said in a conversation."""
    if isinstance(value, str):
        return len(value)
    return sum(len(turn.get("content") or "") for turn in value or [])


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _is_number(feature: Any) -> bool:
    kinds = ("int", "uint", "float")
    return isinstance(feature, datasets.Value) and feature.dtype.startswith(kinds)


def _show(
    name: str, value: Any, feature: Any, shape: Sequence[int] | None, *, is_text: bool
) -> Shown:
    if value is None or value == []:
        return Shown(name, "value", "none" if value is None else "empty")
    if isinstance(feature, datasets.Image) and isinstance(value, dict):
        value = value["bytes"]
    if isinstance(value, str) and (is_text or len(value) > SHORT or "\n" in value):
        return Shown(name, "text", visible(value))
    image = _picture(value, shape)
    if image is not None:
        size = f"{image.width} × {image.height}, {'gray' if image.mode == 'L' else 'color'}"
        return Shown(name, "picture", size, picture=image)
    if isinstance(value, bytes):
        return Shown(name, "value", f"{len(value):,} bytes")
    if _is_conversation(value):
        turns = tuple((visible(str(t["role"])), visible(str(t["content"] or ""))) for t in value)
        return Shown(name, "turns", "\n".join(f"{role}: {said}" for role, said in turns), turns)
    if isinstance(value, list):
        return _list(name, value)
    return Shown(name, "value", visible(_value(value, feature)))


def _value(value: Any, feature: Any) -> str:
    if isinstance(feature, datasets.ClassLabel) and isinstance(value, int) and value >= 0:
        return str(feature.int2str(value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return plain(value)
    return str(value)


def _picture(value: Any, shape: Sequence[int] | None) -> PIL.Image.Image | None:
    """What a cell shows, gray or in color, if it is an image."""
    if not isinstance(value, bytes):
        return None
    if shape is not None and len(value) == int(np.prod(shape)):
        pixels = np.frombuffer(value, dtype=np.uint8).reshape(shape)
        if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
            return None
        return PIL.Image.fromarray(pixels.squeeze(2) if pixels.shape[2:] == (1,) else pixels)
    try:
        with PIL.Image.open(io.BytesIO(value)) as image:
            return image.copy() if image.mode == "L" else image.convert("RGB")
    except (OSError, PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError):
        return None


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in value)
    )


def _list(name: str, value: list[Any]) -> Shown:
    try:
        numbers = np.array(value, dtype=np.float64)
    except (ValueError, TypeError):
        return Shown(name, "value", visible(str(value)))
    if numbers.size <= FEW_NUMBERS:
        return Shown(name, "value", ", ".join(plain(float(v)) for v in numbers.ravel()))
    grid = _grid(numbers)
    if numbers.ndim == 1 and grid.shape[0] != grid.shape[1] and numbers.size <= MORE_NUMBERS:
        return Shown(name, "text", ", ".join(plain(float(v)) for v in numbers))
    sizes = " × ".join(str(n) for n in numbers.shape)
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    text = f"{sizes} numbers, {plain(float(low))} to {plain(float(high))}"
    text += f", drawn {grid.shape[1]} × {grid.shape[0]}"
    spread = high - low if high > low else 1.0
    bounded = np.nan_to_num(np.clip(grid, low, high), nan=low)
    shades = 255 - 255 * (bounded - low) / spread
    return Shown(name, "heat", text, picture=PIL.Image.fromarray(shades.astype(np.uint8)))


def _grid(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Numbers as a picture: matrices as they are, squares where a list is one, else rows."""
    if numbers.ndim == 2:
        return numbers
    flat = numbers.ravel()
    side = round(flat.size**0.5)
    if side * side == flat.size and side >= 4:
        return flat.reshape(side, side)
    width = min(flat.size, STRIP)
    height = -(-flat.size // width)
    padded = np.full(width * height, np.nan)
    padded[: flat.size] = flat
    return padded.reshape(height, width)
