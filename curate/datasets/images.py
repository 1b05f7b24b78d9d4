"""Image columns: `datasets.Image`, encoded bytes (PNG, JPEG, ...), or raw pixels."""

import io
import math
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import PIL.Image
import torch
from datasets import Dataset
from torch import Tensor

from curate.errors import DataError

Pixels = np.ndarray[Any, Any]
"""Shape (height, width, channels), uint8."""


def is_image_column(feature: Any) -> bool:
    """Whether a column of this feature holds images or bytes."""
    return isinstance(feature, datasets.Image) or (
        isinstance(feature, datasets.Value) and "binary" in feature.dtype  # large_, fixed_size_
    )


def decode_images(
    data: Dataset, name: str, source: str, shape: Sequence[int] | None = None
) -> Tensor:
    """An image column as uint8, shape (N, channels, height, width).

    Args:
        shape: [height, width] or [height, width, channels] of raw bytes, row
            by row with the channels last; None for encoded images. Gray images
            have one channel, all others are converted to RGB.

    Raises:
        DataError: an image cannot be decoded or has another size, with its row.
    """
    if isinstance(data.features[name], datasets.Image):
        data = data.cast_column(name, datasets.Image(decode=False))
    images: list[Pixels] = []
    for row, cell in enumerate(data.with_format(None)[name]):
        where = f"{source}: column {name}, row {row}"
        pixels = _decoded(cell, where) if shape is None else _raw(cell, shape, where)
        if images and pixels.shape != images[0].shape:
            raise DataError(
                f"{where}: the image is {_size(pixels)} but the first one is {_size(images[0])}; "
                "bring them to one size first."
            )
        images.append(pixels)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _raw(cell: Any, shape: Sequence[int], where: str) -> Pixels:
    if not isinstance(cell, bytes):
        raise DataError(f"{where}: data.columns.image_shape is for raw bytes; remove it.")
    if len(cell) != math.prod(shape):
        raise DataError(
            f"{where}: {len(cell)} bytes, but data.columns.image_shape {list(shape)} "
            f"needs {math.prod(shape)}."
        )
    return np.frombuffer(cell, dtype=np.uint8).reshape((*shape, 1)[:3])


def _decoded(cell: Any, where: str) -> Pixels:
    raw = cell if isinstance(cell, bytes) else cell["bytes"]
    try:
        with PIL.Image.open(cell["path"] if raw is None else io.BytesIO(raw)) as image:
            pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except OSError as error:  # UnidentifiedImageError is one
        raise DataError(
            f"{where}: not an image that can be decoded ({error}); "
            "for raw pixels give data.columns.image_shape."
        ) from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _size(pixels: Pixels) -> str:
    return "x".join(str(n) for n in pixels.shape)
