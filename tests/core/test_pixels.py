"""Pixels of picture files: upright, on white, scaled by their true depth, or refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.images import describe_few_values
from fedkd.data.source import Source
from fedkd.data.sources import load_source
from fedkd.errors import UserError

SCAN = np.random.default_rng(0).integers(0, 256, (8, 6), dtype=np.uint8)
SCAN[0, :2] = 0, 255


def save(root: Path, image: Image.Image | bytes, name: str, **options: object) -> None:
    """Write a picture twice, once for each of two classes."""
    for folder in ("a", "b"):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **options)


def load(root: Path) -> Source:
    return load_source(f"folder:{root}", image_size=None)


def decoded(root: Path, image: Image.Image | bytes, name: str, **options: object) -> np.ndarray:
    """Return the pixels ``[C, H, W]`` that a picture becomes; they are square here."""
    save(root, image, name, **options)
    return load(root).train.images[0].numpy()


def refuse(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(root)
    return str(caught.value)


def square(pixels: np.ndarray) -> np.ndarray:
    return pixels[:6, :6]


# Orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_pictures_are_turned_as_their_exif_says(tmp_path: Path, ending: str, orientation: int):
    # A colour for each quarter survives any compression.
    upright = np.kron([[10, 240], [90, 170]], np.ones((16, 16))).astype(np.uint8)
    upright = np.pad(upright, ((0, 0), (0, 16)), constant_values=128)
    turn = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = Image.fromarray(upright)
    stored = stored if turn is None else stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path, stored, f"turned.{ending}", exif=exif)
    save(tmp_path, Image.fromarray(upright), "upright.png")
    with pytest.raises(UserError, match=r"32 pixels high and 48 wide.*must be square"):
        load(tmp_path)
    images = load_source(f"folder:{tmp_path}", image_size=32).train.images
    difference = images[0].int() - images[1].int()
    assert int(difference.abs().max()) < 30


def test_a_tag_that_is_damaged_turns_nothing(tmp_path: Path):
    found = decoded(tmp_path, Image.fromarray(square(SCAN)), "1.png", exif=b"Exif\0\0II*\0\xff\xff")
    assert np.array_equal(found[0], square(SCAN))


# Depth


def deep(pixels: np.ndarray, top: float, dtype: type) -> np.ndarray:
    return np.rint(pixels.astype(float) / 255 * top).astype(dtype)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    ("ending", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)]
)
def test_whole_numbers_are_scaled_by_their_true_depth(tmp_path, bits, ending, dtype):
    top = 2**bits - 1
    found = decoded(tmp_path, Image.fromarray(deep(square(SCAN), top, dtype)), f"1.{ending}")
    assert np.array_equal(found[0], square(SCAN))
    warnings = load(tmp_path).warnings
    if bits == 16:
        assert warnings == ()
    else:
        assert f"from 0 to {top}; they are read with 0 as black and {top} as white" in warnings[0]


def test_sixteen_bits_keep_the_pixels_that_they_had(tmp_path):
    values = np.array([[0, 257, 300], [128 * 257, 40000, 65535], [65000, 1, 128]], dtype=np.uint16)
    found = decoded(tmp_path, Image.fromarray(values), "1.png")
    assert np.array_equal(found[0], np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize("top", [1.0, 255.0, 1023.0, 4095.0, 65535.0])
def test_floats_are_scaled_by_the_least_range_that_holds_them(tmp_path, top):
    values = (square(SCAN) / 255 * top).astype(np.float32)
    found = decoded(tmp_path, Image.fromarray(values), "1.tif")
    assert np.array_equal(found[0], square(SCAN))
    assert f"and {top:g} as white" in load(tmp_path).warnings[0]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (SCAN.astype(np.int32) * 16 - 1024, "run from -1024 to 3056, which is not a known scale"),
        (SCAN.astype(np.int32) * 1000, "run from 0 to 255000, which is not a known scale"),
        (SCAN / 127.5 - 1, "run from -1 to 1, which is not a known scale"),
        (np.where(SCAN > 9, SCAN, np.nan), r"1.tif cannot be read .*not finite"),
        (np.where(SCAN > 9, SCAN, np.inf), r"1.tif cannot be read .*not finite"),
    ],
)
def test_values_on_no_known_scale_are_refused(tmp_path, values, sentence):
    kind = np.int32 if values.dtype.kind == "i" else np.float32
    save(tmp_path, Image.fromarray(values.astype(kind)), "1.tif")
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


def test_the_depth_is_that_of_all_pictures_together(tmp_path):
    save(tmp_path, Image.fromarray(np.full((4, 4), 4000, np.uint16)), "bright.png")
    save(tmp_path, Image.fromarray(np.full((4, 4), 1000, np.uint16)), "dark.png")
    save(tmp_path, Image.fromarray(np.full((4, 4), 100, np.uint8)), "shallow.png")
    images = load(tmp_path).train.images[:3, 0, 0, 0].tolist()
    assert images == [round(4000 / 4095 * 255), round(1000 / 4095 * 255), 100]


def test_mixed_depths_are_refused_and_a_lone_dark_picture_is_told_of(tmp_path):
    noise = np.random.default_rng(1).integers(0, 65536, (12, 40, 40))
    for index in range(11):
        save(tmp_path, Image.fromarray(noise[index].astype(np.uint16)), f"{index:02}.png")
    dark = Image.fromarray((noise[11] // 256).astype(np.uint16))
    dark.save(tmp_path / "a" / "dark.png")
    assert any("1 pictures come out almost without contrast" in w for w in load(tmp_path).warnings)
    for index in range(6):
        dark.save(tmp_path / "b" / f"dark{index}.png")
    assert "7 of its 29 pictures of more than 8 bits" in refuse(tmp_path)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_16(values: np.ndarray) -> bytes:
    """Write ``[H, W, C]`` of 16 bits a channel, which Pillow cannot."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_16_bits_is_read_and_of_fewer_in_16_refused(tmp_path, channels):
    values = np.random.default_rng(2).integers(0, 65536, (5, 5, channels))
    if channels != 3:
        values[..., -1] = 65535
    found = decoded(tmp_path, png_16(values), "1.png")
    wanted = values[..., 0] >> 8
    assert np.array_equal(found[0], wanted)
    shallow = np.where(np.arange(channels) == 3, 65535, values >> 4)
    if channels == 2:
        shallow[..., 1] = 65535
    save(tmp_path, png_16(shallow), "1.png")
    assert "colour pictures of 16 bits a channel" in refuse(tmp_path)


@pytest.mark.parametrize("top", [1000, 4095, 65535])
def test_portable_pixmaps_say_their_depth(tmp_path, top):
    values = deep(square(SCAN), top, np.uint16)
    content = b"P5 6 6 %d\n" % top + values.astype(">u2").tobytes()
    found = decoded(tmp_path, content, "1.pgm")
    assert np.abs(found[0].astype(int) - square(SCAN)).max() <= 1
    assert load(tmp_path).warnings == ()


def test_white_may_be_zero(tmp_path):
    values = deep(square(SCAN), 65535, np.uint16)
    found = decoded(tmp_path, Image.fromarray(values), "1.tif", tiffinfo={262: 0})
    assert np.array_equal(found[0], 255 - square(SCAN))


def test_twelve_bits_among_sixteen_are_refused(tmp_path):
    noise = np.random.default_rng(1).integers(0, 65536, (6, 40, 40))
    for index, values in enumerate(noise):
        depth = values if index % 2 else values >> 4
        save(tmp_path, Image.fromarray(depth.astype(np.uint16)), f"{index}.png")
    assert "6 of its 12 pictures of more than 8 bits" in refuse(tmp_path)


# Colour, palettes, transparency


def test_what_is_transparent_lies_on_white(tmp_path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[..., 0] = 200
    pixels[0, :, 3], pixels[1, :, 3] = 255, 128
    found = decoded(tmp_path, Image.fromarray(pixels), "1.png")
    assert found[:, 0, 0].tolist() == [200, 0, 0]
    assert found[:, 3, 0].tolist() == [255, 255, 255]
    assert 220 < found[0, 1, 0] < 235
    assert 120 < found[1, 1, 0] < 135


def test_grey_with_transparency_stays_grey_and_lies_on_white(tmp_path):
    pixels = np.stack([square(SCAN), np.full((6, 6), 255, np.uint8)], axis=2)
    pixels[0, 0] = 0, 0
    found = decoded(tmp_path, Image.fromarray(pixels), "1.png")
    expected = square(SCAN).copy()
    expected[0, 0] = 255
    assert found.shape == (1, 6, 6)
    assert np.array_equal(found[0], expected)


def test_opaque_colour_keeps_its_pixels(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (5, 5, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    found = decoded(tmp_path, Image.fromarray(pixels), "1.png")
    assert np.array_equal(found, pixels[..., :3].transpose(2, 0, 1))


def test_palettes_and_their_transparent_colour(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 30, 9, 9, 9])
    image.putpixel((0, 0), 2)
    found = decoded(tmp_path, image, "1.png", transparency=2)
    assert found[:, 1, 1].tolist() == [200, 10, 30]
    assert found[:, 0, 0].tolist() == [255, 255, 255]


def test_cmyk_becomes_rgb(tmp_path):
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    found = decoded(tmp_path, red, "1.tif")
    assert found[:, 0, 0].tolist() == [255, 0, 0]
    found = decoded(tmp_path, red, "1.tif").astype(int)
    save(tmp_path, red, "2.jpg", quality=100)
    print_red = load(tmp_path).train.images[1, :, 4, 4].int()
    assert np.abs(print_red.numpy() - found[:, 0, 0]).max() < 8


def test_of_animations_and_pages_the_first_is_read(tmp_path):
    frames = [Image.fromarray(np.rot90(square(SCAN), turn)) for turn in range(3)]
    save(tmp_path, frames[0], "1.gif", save_all=True, append_images=frames[1:])
    save(tmp_path, frames[0], "2.tif", save_all=True, append_images=frames[1:])
    source = load(tmp_path)
    for image in source.train.images:
        assert np.array_equal(image[0], square(SCAN))
    assert source.warnings == (
        "4 pictures have several frames or pages; only the first of each is read",
    )


# Bounds


def test_a_picture_that_declares_too_many_pixels_is_refused_at_once(tmp_path):
    head = struct.pack(">IIBBBBB", 12_000, 9_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 9))
    save(tmp_path, bomb + chunk(b"IEND", b""), "1.png")
    assert "more than 50000000 pixels" in refuse(tmp_path)


# Few values


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.zeros((4, 4)), "only 1 distinct values, from 0 to 0"),
        (np.arange(16).reshape(4, 4) % 2, "only 2 distinct values, from 0 to 1"),
        (np.arange(16).reshape(4, 4), "only 16 distinct values, from 0 to 15"),
        (np.arange(16).reshape(4, 4) % 2 * 255, "only 2 distinct values, from 0 to 255"),
    ],
)
def test_a_source_of_few_values_is_told_of(tmp_path, pixels, sentence):
    save(tmp_path, Image.fromarray(pixels.astype(np.uint8)), "1.png")
    (warning,) = load(tmp_path).warnings
    assert sentence in warning


def test_many_images_of_which_few_have_other_values_are_not_told_of(tmp_path):
    import torch

    images = torch.zeros(2500, 1, 4, 4, dtype=torch.uint8)
    assert describe_few_values(images) is not None
    images[1, 0] = torch.arange(16, dtype=torch.uint8).reshape(4, 4) * 16
    assert describe_few_values(images) is None
