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

from curate.datasets.images import decode_images, is_image_column, size_of
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


def test_pictures_of_any_size_are_brought_to_one() -> None:
    shades = np.array([[0, 100], [200, 250]], dtype=np.uint8)
    cells = [png(np.kron(shades, np.ones(size, np.uint8))) for size in [(8, 4), (16, 16), (2, 2)]]
    images = decode_images(Dataset.from_dict({"image": cells}), "image", "src", size=[4, 4])
    assert images.shape == (3, 1, 4, 4)
    corners = images[:, 0, ::3, ::3].float()
    assert (corners - torch.from_numpy(shades).float()).abs().max() <= 1


@pytest.mark.parametrize("order", [[0, 1], [1, 0]], ids=["gray first", "rgb first"])
def test_gray_pictures_are_made_rgb_where_others_are(order: list[int]) -> None:
    both = [png(GRAY[0]), png(RGB[0])]
    cells = [both[k] for k in order]
    with pytest.raises(DataError, match=r"bring all to one with data.columns.image_size"):
        decode_images(Dataset.from_dict({"image": cells}), "image", "src")
    images = decode_images(Dataset.from_dict({"image": cells}), "image", "src", size=[3, 4])
    expected = [np.stack([GRAY[0]] * 3), np.moveaxis(RGB[0], 2, 0)]
    assert np.array_equal(images.numpy(), np.stack([expected[k] for k in order]))


def test_the_size_of_a_picture_is_that_of_what_is_decoded() -> None:
    file = io.BytesIO()
    image = PIL.Image.fromarray(RGB[0])
    exif = image.getexif()
    exif[0x0112] = 6  # held upright
    image.save(file, "JPEG", exif=exif)
    decoded = decode_images(Dataset.from_dict({"image": [file.getvalue()]}), "image", "src")
    assert size_of(file.getvalue()) == tuple(decoded.shape[2:]) == (4, 3)
    assert size_of(b"no picture") is size_of(None) is size_of({"bytes": None, "path": None}) is None


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


def encoded(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels, mode).save(buffer, format=kind, **how)
    return buffer.getvalue()


def seen(*cells: bytes) -> np.ndarray:
    return decode_images(Dataset.from_dict({"image": [*cells]}), "image", "src").numpy()


RAMP = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_and_floats_have_the_shades_of_8_bits(kind: str) -> None:
    assert np.array_equal(seen(encoded(RAMP.astype(np.uint16) * 257, kind=kind))[0, 0], RAMP)
    floats = (RAMP / 255).astype(np.float32)
    assert np.array_equal(seen(encoded(floats, kind="TIFF"))[0, 0], RAMP)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RAMP.astype(np.float32), "row 0: .*floats outside 0 to 1"),
        (np.full((4, 4), np.nan, np.float32), "row 0: .*floats outside 0 to 1"),
        (RAMP.astype(np.int32), "row 0: .*whole numbers of 32 bits"),
    ],
)
def test_shades_that_say_nothing_of_white_are_refused(pixels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        seen(encoded(pixels, kind="TIFF"))


def with_alpha(gray: int, alpha: np.ndarray) -> np.ndarray:
    return np.dstack([np.full((*alpha.shape, 3), gray, np.uint8), alpha])


def test_what_is_transparent_lies_on_white_and_what_is_white_on_black() -> None:
    assert np.array_equal(seen(encoded(with_alpha(0, RAMP)))[0, 0], 255 - RAMP)
    assert np.array_equal(seen(encoded(with_alpha(255, RAMP)))[0, 0], RAMP)
    opaque, nothing = np.full_like(RAMP, 255), np.zeros_like(RAMP)
    assert (seen(encoded(with_alpha(255, opaque))) == 255).all()
    assert (seen(encoded(with_alpha(0, nothing))) == 255).all()
    gray = np.dstack([RAMP, opaque])
    assert np.array_equal(seen(encoded(gray), encoded(RAMP))[0], seen(encoded(RAMP))[0])


@pytest.mark.parametrize(("gray", "ground"), [(254, 0), (230, 0), (150, 255), (30, 255)])
def test_what_is_nearly_white_lies_on_black(gray: int, ground: int) -> None:
    solid = np.where(RAMP > 100, 255, 0).astype(np.uint8)
    cell = with_alpha(gray, solid)
    expected = np.where(solid == 255, gray, ground)
    assert np.array_equal(seen(encoded(cell))[0, 0], expected)
    yellow = cell.copy()
    yellow[..., :3] = 255, 255, 0  # which white does not hide
    assert (seen(encoded(yellow))[0][:, solid == 0] == 255).all()


def test_a_transparent_color_is_transparent() -> None:
    glyph = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    for mode in ("L", "P"):
        image = PIL.Image.fromarray(glyph).convert("L")
        if mode == "P":
            image = PIL.Image.fromarray(glyph, "P")
            image.putpalette([0, 0, 0, 9, 9, 9] + [0] * 762)
        buffer = io.BytesIO()
        image.save(buffer, "PNG", transparency=0)
        assert (seen(buffer.getvalue())[0, 0] == 255).tolist() == (glyph == 0).tolist()


def test_two_shades_are_gray_and_a_picture_is_turned_as_its_camera_was() -> None:
    assert seen(encoded(RAMP > 100)).shape == (1, 1, 4, 4)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = seen(encoded(RAMP[:2], kind="PNG", exif=exif))
    assert np.array_equal(turned[0, 0], np.rot90(RAMP[:2], -1))


def test_a_bomb_and_what_is_not_there_are_named_with_their_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 16)
    for side in (5, 50):  # a warning of Pillow's, an error of Pillow's
        with pytest.raises(DataError, match=r"row 1: not an image .*decompression bomb"):
            seen(encoded(RAMP), encoded(np.zeros((side, side), np.uint8)))
    cells = pa.array([{"bytes": None, "path": None}])
    empty = Dataset(
        pa.table({"image": cells}).cast(Features({"image": datasets.Image()}).arrow_schema)
    )
    with pytest.raises(DataError, match="row 0: neither bytes nor a file"):
        decode_images(empty, "image", "src")


def test_a_picture_that_is_a_program_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match="row 0: not an image that can be decoded"):
        decode_images(Dataset.from_dict({"a": [program]}), "a", "rows")
