"""Images of every kind as bytes with the channels first."""

import io
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features, Value

from curate.datasets.images import decode_images, is_image_column
from curate.errors import DataError


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(buffer, format="PNG")
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
    images = decode_images(data, "image", "src", shape)
    expected = pixels if color else pixels[..., None]
    assert images.dtype == torch.uint8
    assert images.is_contiguous()
    assert np.array_equal(images.numpy(), np.moveaxis(expected, 3, 1))


def test_what_is_not_gray_becomes_rgb() -> None:
    cells = [png(pixels, mode="RGBA") for pixels in RGB]
    images = decode_images(Dataset.from_dict({"image": cells}), "image", "src")
    assert np.array_equal(images.numpy(), np.moveaxis(RGB, 3, 1))


def test_raw_images_in_a_column_of_fixed_size() -> None:
    cells = pa.array([bytes(range(4)), bytes(range(4, 8))], type=pa.binary(4))
    data = Dataset(pa.table({"image": cells}))
    assert is_image_column(data.features["image"])
    images = decode_images(data, "image", "src", [2, 2])
    assert images.shape == (2, 1, 2, 2)
    assert images.flatten().tolist() == list(range(8))


@pytest.mark.parametrize(
    ("cell", "shape", "message"),
    [
        (b"junk", None, "column image, row 1: not an image that can be decoded .*image_shape"),
        (
            png(np.zeros((2, 2), np.uint8)),
            None,
            "row 1: the image is 2x2x1 but the first one is 3x4",
        ),
        (b"123", [3, 4], r"row 1: 3 bytes, but data.columns.image_shape \[3, 4\] needs 12"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(
    cell: bytes, shape: list[int] | None, message: str
) -> None:
    first = png(GRAY[0]) if shape is None else GRAY[0].tobytes()
    with pytest.raises(DataError, match=message):
        decode_images(Dataset.from_dict({"image": [first, cell]}), "image", "src", shape)


def test_a_shape_is_for_raw_bytes_only() -> None:
    data = Dataset.from_dict(
        {"image": [PIL.Image.fromarray(GRAY[0])]}, features=Features({"image": datasets.Image()})
    )
    with pytest.raises(DataError, match="image_shape is for raw bytes; remove it"):
        decode_images(data, "image", "src", [3, 4])


@pytest.mark.parametrize(
    ("feature", "image"),
    [
        (Value("binary"), True),
        (Value("large_binary"), True),
        (datasets.Image(), True),
        (Value("string"), False),
        (datasets.List(Value("binary")), False),
    ],
)
def test_which_columns_hold_images(feature: Any, image: bool) -> None:
    assert is_image_column(feature) is image
