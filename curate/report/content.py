"""Rows as what they are: texts, conversations, pictures, numbers. Loads no torch."""

import fnmatch
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import datasets
import numpy as np
import PIL.Image

from curate.recipe import Recipe
from curate.report.words import plain, visible

FEW_NUMBERS, MORE_NUMBERS = 12, 48
"""Numbers of a list that are shown as digits rather than drawn; up to the second where no square
can be made of them."""
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


def show_row(
    content: Mapping[str, Any], features: datasets.Features, recipe: Recipe | None
) -> list[Shown]:
    """The columns of a row, in order."""
    shape = None if recipe is None else recipe.data.columns.image_shape
    order = in_order(features, recipe)
    planted: dict[str, str] = {}
    if recipe is not None and recipe.data.label_noise is not None and order.labels:
        (label,) = order.labels
        planted = {f"{label}_clean": label, f"{label}_noisy": label}
    found = []
    for name in order.all:
        if name not in planted:
            is_text = name in order.texts
            found.append(
                _show(visible(name), content[name], features[name], shape, is_text=is_text)
            )
        elif name.endswith("_clean") and content.get(f"{planted[name]}_noisy"):
            clean = label_of(content, features, name)
            found.append(Shown(f"right {visible(planted[name])}", "value", clean))
    return found


def preview(shown: Sequence[Shown], label: str | None = None) -> str:
    """What identifies a row in a list: its first texts, or its first values but the label."""
    texts = [own.text for own in shown if own.kind in ("text", "turns")]
    if texts:
        return " → ".join(texts[:2])
    values = [
        f"{own.name} {own.text}" for own in shown if own.kind == "value" and own.name != label
    ]
    return ", ".join(values[:6])


def label_of(content: Mapping[str, Any], features: datasets.Features, name: str) -> str:
    """A label in words."""
    return visible(_value(content[name], features[name]))


def characters(value: Any) -> int:
    """The length of a text or of all that is said in a conversation."""
    if isinstance(value, str):
        return len(value)
    return sum(len(turn.get("content") or "") for turn in value or [])


def _is_text(feature: Any) -> bool:
    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string")


def _show(
    name: str, value: Any, feature: Any, shape: Sequence[int] | None, *, is_text: bool
) -> Shown:
    if value is None:
        return Shown(name, "value", "none")
    if isinstance(value, str) and (is_text or len(value) > SHORT or "\n" in value):
        return Shown(name, "text", visible(value))
    image = _picture(value, shape)
    if image is not None:
        size = f"{image.width} × {image.height}, {'grey' if image.mode == 'L' else 'colour'}"
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
    """What a cell shows, grey or in colour, if it is an image."""
    if isinstance(value, PIL.Image.Image):
        return value if value.mode == "L" else value.convert("RGB")
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
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    text = f"{sizes} numbers, {plain(float(low))} to {plain(float(high))}"
    text += f", drawn {grid.shape[1]} × {grid.shape[0]}"
    spread = high - low if high > low else 1.0
    shades = np.nan_to_num(255 - 255 * (grid - low) / spread, nan=255.0)
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
