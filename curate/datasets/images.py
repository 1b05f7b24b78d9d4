"""Image columns: `datasets.Image`, encoded bytes (PNG, JPEG, ...), or raw pixels."""

import io
import math
import struct
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from datasets import Dataset
from torch import Tensor

from curate.datasets.tensors import PIECE, large_tensor
from curate.errors import DataError
from curate.runtime.large import AROUND, pieces, touched

Pixels = np.ndarray[Any, Any]
"""Shape (height, width, channels), uint8."""


GRAY = ("1", "L", "LA", "La")
FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded: pictures, and no programs (EPS would run Ghostscript)."""
ORIENTATION, SIDEWAYS = 0x0112, 5
"""The tag of EXIF that says how a camera was held; from here on height is width."""
FAINT = 64
"""Shades by which an image has to differ within itself so as to be seen."""
UNDECODABLE = (
    OSError,  # UnidentifiedImageError is one
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    PIL.Image.DecompressionBombError,
    PIL.Image.DecompressionBombWarning,
)


def is_image_column(feature: Any) -> bool:
    """Whether a column of this feature holds images or bytes."""
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, datasets.Value) and "binary" in feature.dtype  # large_, fixed_size_
    )


def decode_images(
    data: Dataset,
    name: str,
    source: str,
    shape: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
) -> Tensor:
    """An image column as uint8, shape (N, channels, height, width).

    Args:
        shape: [height, width] or [height, width, channels] of raw bytes, row
            by row with the channels last; None for encoded images. Gray images
            have one channel, all others are converted to RGB; 16 bits and floats of 0..1
            become 8 bits, and what is transparent lies on white, or on black if white hides it.
        size: [height, width] that encoded images are brought to; gray ones are then made RGB
            where others are. None: all have to be of one size already.

    Raises:
        DataError: an image cannot be decoded or has another size, with its row.
    """
    if isinstance(data.features[name], datasets.Image):
        data = data.cast_column(name, datasets.Image(decode=False))
    images, first = torch.empty(0), (0, 0, 0)
    for row, cell in enumerate(data.with_format(None)[name]):
        where = f"{source}: column {name}, row {row}"
        pixels = _decoded(cell, where, size) if shape is None else _raw(cell, shape, where)
        if row == 0:
            first = pixels.shape
            images = _room(len(data), first)
        if size is not None and first[2] < pixels.shape[2]:
            first = pixels.shape
            images = _in_color(images, row)
        if pixels.shape != first and (size is None or pixels.shape[2] != 1):
            raise DataError(
                f"{where}: the image is {_size(pixels.shape)} but the first one is "
                f"{_size(first)}; bring all to one with data.columns.image_size: [height, width]."
            )
        images[row] = torch.tensor(pixels).permute(2, 0, 1)
        touched(2 + pixels.nbytes // AROUND)  # where it comes from, where it goes
    return images


def _room(count: int, shape: Sequence[int]) -> Tensor:
    height, width, channels = shape
    return large_tensor((count, channels, height, width), torch.uint8)


def _in_color(images: Tensor, rows: int) -> Tensor:
    """The first so many rows of gray images, in RGB; all others are still to come."""
    _, _, height, width = images.shape
    colored = _room(len(images), (height, width, 3))
    for part in pieces(rows, max(1, PIECE // colored[0].nbytes)):
        colored[part] = images[part]
    return colored


def _raw(cell: Any, shape: Sequence[int], where: str) -> Pixels:
    if not isinstance(cell, bytes):
        raise DataError(f"{where}: data.columns.image_shape is for raw bytes; remove it.")
    if len(cell) != math.prod(shape):
        raise DataError(
            f"{where}: {len(cell)} bytes, but data.columns.image_shape {list(shape)} "
            f"needs {math.prod(shape)}."
        )
    return np.frombuffer(cell, dtype=np.uint8).reshape((*shape, 1)[:3])


def _decoded(cell: Any, where: str, size: Sequence[int] | None) -> Pixels:
    content = {"bytes": cell} if isinstance(cell, bytes) else cell
    file = content["path"] if content["bytes"] is None else io.BytesIO(content["bytes"])
    if file is None:
        raise DataError(f"{where}: neither bytes nor a file; fill it or drop the row.")
    try:
        with _no_bombs(), PIL.Image.open(file, formats=FORMATS) as image:
            upright = PIL.ImageOps.exif_transpose(image)
            seen = _as_seen(upright, image.format)
            if size is not None:
                seen = seen.resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
            pixels = np.asarray(seen)
    except UNDECODABLE as error:
        raise DataError(
            f"{where}: not an image that can be decoded ({error}); "
            "for raw pixels give data.columns.image_shape."
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1)


def size_of(cell: Any) -> tuple[int, int] | None:
    """Height and width of an encoded image as it is decoded; None if it cannot be opened."""
    content = {"bytes": cell} if isinstance(cell, bytes) else cell or {"bytes": b""}
    file = content["path"] if content["bytes"] is None else io.BytesIO(content["bytes"])
    try:
        with _no_bombs(), PIL.Image.open(file, formats=FORMATS) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= SIDEWAYS
            return image.size if turned else image.size[::-1]
    except (*UNDECODABLE, AttributeError):  # of a file that is None
        return None


def _no_bombs() -> AbstractContextManager[None]:
    return warnings.catch_warnings(action="error", category=PIL.Image.DecompressionBombWarning)


def _as_seen(image: PIL.Image.Image, file_format: str | None) -> PIL.Image.Image:
    """An image in 8 bits, gray or RGB, as a viewer would show it.

    Raises:
        ValueError: its numbers say nothing about what is white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        return PIL.Image.fromarray(_bytes(np.asarray(image) / 65535))
    if image.mode == "I":
        raise ValueError("whole numbers of 32 bits; make them 8 or 16 bits")
    if image.mode == "F":
        shades = np.asarray(image)
        if not ((shades >= 0) & (shades <= 1)).all():
            raise ValueError("floats outside 0 to 1; scale them, or make them 8 or 16 bits")
        return PIL.Image.fromarray(_bytes(shades))
    if image.has_transparency_data:
        return _on_ground(image)
    return image.convert("L" if image.mode in GRAY else "RGB")


def _on_ground(image: PIL.Image.Image) -> PIL.Image.Image:
    """A transparent image on white, or on black if white would hide it and black does less."""
    mode, layers = "L" if image.mode in GRAY else "RGB", image.convert("RGBA")

    def on(shade: str) -> PIL.Image.Image:
        ground = PIL.Image.new("RGBA", image.size, shade)
        return PIL.Image.alpha_composite(ground, layers).convert(mode)

    alpha, seen = np.asarray(layers)[..., 3], on("white")
    if alpha.min() == alpha.max() or _contrast(seen) >= FAINT:
        return seen
    return max(seen, on("black"), key=_contrast)


def _contrast(image: PIL.Image.Image) -> int:
    """Shades between the darkest and the lightest pixel, of the channel where that is most."""
    return int(np.ptp(np.asarray(image), axis=(0, 1)).max())


def _bytes(shades: Pixels) -> Pixels:
    """Shades of 0 to 1 in 8 bits."""
    return np.asarray(np.rint(shades * 255), dtype=np.uint8)


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
