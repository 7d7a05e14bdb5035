"""Pixels of one opened picture: upright, on white, of 8 bits.

Pictures of more than 8 bits are scaled by their true depth. Few files declare it: a 12-bit scan
usually is a 16-bit file. The depth therefore follows from the largest value of all such pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from fedkd.errors import UserError

Pixels = npt.NDArray[np.uint8]

WHOLE, FLOAT, HIGH_BYTE = "whole", "float", "high-byte"
"""Kinds of deep pictures: whole numbers, floats, and colour of which Pillow keeps the high byte."""

_DEPTHS = (1, 2, 4, 8, 10, 12, 14, 16)
_BITS_PER_SAMPLE = 258
_TIFF_PLAIN = 8
_ON_ITS_SIDE = (5, 6, 7, 8)
_FEW_LEVELS = 17
"""Of 12 bits that are read as 16 so many are left."""
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_ALPHA_MODES = ("LA", "La", "PA", "RGBA", "RGBa")


@dataclass
class Depth:
    """The values of all deep pictures of one kind.

    Attributes:
        flattened: places of pictures that this scale leaves with a few grey levels.
    """

    least: float = float("inf")
    most: float = float("-inf")
    count: int = 0
    flattened: list[str] = field(default_factory=list)

    def add(self, least: float, most: float) -> None:
        """Take in the values of one more picture."""
        self.least, self.most = min(self.least, least), max(self.most, most)
        self.count += 1

    def top(self, kind: str) -> float:
        """Return the value that stands for white.

        Raises:
            UserError: no scale from 0 up to 16 bits holds the values.
        """
        tops = [float(2**bits - 1) for bits in _DEPTHS]
        if kind == FLOAT:
            tops = [1.0, *(top for top in tops if top >= 255)]
        if self.least < 0 or self.most > tops[-1]:
            raise UserError(
                f"the values of its pictures run from {self.least:g} to {self.most:g}, which is "
                "not a known scale from black to white; save them as 8-bit or 16-bit pictures of "
                "values from 0"
            )
        return 255.0 if self.most == 0 else next(top for top in tops if self.most <= top)


def deep_kind(image: Image.Image) -> str | None:
    """Return which kind of more than 8 bits a picture is of, from its header; None of no kind."""
    if image.mode == "F":
        return FLOAT
    if image.mode.startswith("I"):
        return WHOLE
    codec, arguments = _codec(image)
    deep = any(isinstance(each, str) and ";16" in each for each in arguments)
    return HIGH_BYTE if deep or (codec.startswith("ppm") and 65535 in arguments) else None


def declared_top(image: Image.Image) -> float | None:
    """Return the value of white where the file's header declares it, else None."""
    codec, arguments = _codec(image)
    if image.format == "PPM" and codec.startswith("ppm") and 65535 not in arguments:
        return 65535.0  # Pillow scales to it
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (_TIFF_PLAIN,))[0]
        if _TIFF_PLAIN < bits < 16:
            return float(2**bits - 1)
    return None


def _codec(image: Image.Image) -> tuple[str, tuple[object, ...]]:
    """Return the name of Pillow's decoder and its arguments, the raw mode among them."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return "", ()
    arguments = tiles[0][3]
    return str(tiles[0][0]), arguments if isinstance(arguments, tuple) else (arguments,)


def value_range(image: Image.Image) -> tuple[float, float]:
    """Return the smallest and the largest value of a deep picture.

    Raises:
        ValueError: a value is not finite.
    """
    values = np.asarray(image)
    if image.mode in _ALPHA_MODES:
        values = values[..., :-1]
    least, most = float(values.min()), float(values.max())
    if not np.isfinite([least, most]).all():
        raise ValueError("it has values that are not finite")
    return least, most


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height as the header and its EXIF orientation give them."""
    # Pillow turns TIFF files itself, and reads a whole PNG to look for a tag behind its pixels.
    known = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)
    if known and _orientation(image) in _ON_ITS_SIDE:
        return image.height, image.width
    return image.size


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged tag says nothing, and the pixels may be whole
        return 1


def is_grey(image: Image.Image) -> bool:
    """Whether a picture has no colour, by its header."""
    if image.format == "GIF" and image.mode == "P":
        palette = np.array(image.getpalette() or [0, 0, 1]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def to_pixels(image: Image.Image, channels: int, top: float) -> Pixels:
    """Return the pixels ``[channels, H, W]`` of a picture, turned upright and pasted on white.

    Channels are 1 for luma, 3 for RGB. ``top`` is the value of white of a deep picture of whole
    numbers or floats.
    """
    image = _upright(image)
    if image.mode == "F" or image.mode.startswith("I"):
        scaled = np.rint(np.asarray(image) / (top / 255)).clip(0, 255)
        # Pillow does so for 8 bits alone.
        inverted = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        image = Image.fromarray((255 - scaled if inverted else scaled).astype(np.uint8))
    elif image.mode in _ALPHA_MODES or "transparency" in image.info:
        image = on_white(image)
    if channels == 1:
        return np.array(image.convert("L"))[None]
    return np.ascontiguousarray(np.array(image.convert("RGB")).transpose(2, 0, 1))


def loses_contrast(image: Image.Image, pixels: Pixels) -> bool:
    """Whether a deep picture has come out with a few grey levels though it has many values."""
    levels = int(np.count_nonzero(np.bincount(pixels.ravel(), minlength=256)))
    return levels <= _FEW_LEVELS and len(np.unique(np.asarray(image))) >= 4 * levels


def _upright(image: Image.Image) -> Image.Image:
    if _orientation(image) == 1:
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # likewise
        return image


def on_white(image: Image.Image, size: tuple[int, int] | None = None) -> Image.Image:
    """Return a picture in RGB at the centre of a white one, by default of its own size."""
    whole = image.convert("RGBA")
    width, height = size or whole.size
    ground = Image.new("RGBA", (width, height), "white")
    ground.alpha_composite(whole, ((width - whole.width) // 2, (height - whole.height) // 2))
    return ground.convert("RGB")
