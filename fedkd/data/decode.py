"""Picture files decoded into arrays: one size, greyscale or RGB, nothing else assumed of them."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from fedkd.data.images import resize
from fedkd.data.source import MAX_BYTES
from fedkd.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_MAX_PIXELS = 50_000_000
"""Most pixels of one picture: a small file can declare any number of them."""


@dataclass(frozen=True)
class Picture:
    """A picture that is not read yet.

    Attributes:
        place: where it lies, for messages.
        open: returns its file, to be read from its start.
    """

    place: str
    open: Callable[[], IO[bytes]]


@dataclass(frozen=True)
class Layout:
    """What pictures become: their channels, height and width in pixels, and whether resized."""

    channels: int
    height: int
    width: int
    resized: bool


def find_layout(pictures: Sequence[Picture], image_size: int | None) -> Layout:
    """Look at the headers of all pictures: greyscale if all of them are, else RGB.

    Args:
        pictures: at least one.
        image_size: height and width to resize to in pixels, or None to leave them as they are.

    Raises:
        UserError: a picture is unreadable or too large, or sizes differ and none is given.
    """
    first: tuple[str, tuple[int, int]] | None = None
    grey = True
    for picture in pictures:
        with _opened(picture) as image:
            grey = grey and _is_grey(image)
            first = first or (picture.place, image.size)
            if image.size != first[1] and image_size is None:
                raise UserError(
                    f"its images differ in size: {first[0]} is {_size(first[1])} but "
                    f"{picture.place} is {_size(image.size)}; set data.image_size to resize them"
                )
    if first is None:
        raise UserError("it has no images")
    width, height = (image_size, image_size) if image_size else first[1]
    layout = Layout(1 if grey else 3, height, width, image_size is not None)
    if (needed := len(pictures) * layout.channels * height * width) > MAX_BYTES:
        raise UserError(
            f"its {len(pictures)} images take {needed} bytes of memory, more than {MAX_BYTES}; "
            "set data.image_size to a smaller size"
        )
    return layout


def decode(pictures: Sequence[Picture], layout: Layout) -> torch.Tensor:
    """Read pictures.

    Args:
        pictures: N of them.
        layout: found over these pictures, and maybe others, by :func:`find_layout`.

    Returns:
        uint8 ``[N, C, H, W]``.

    Raises:
        UserError: a picture is damaged.
    """
    shape = (len(pictures), layout.channels, layout.height, layout.width)
    decoded = torch.empty(shape, dtype=torch.uint8)
    for index, picture in enumerate(pictures):
        with _opened(picture) as image:
            pixels = torch.from_numpy(_pixels(image, layout.channels))
        decoded[index] = resize(pixels[None], layout.height)[0] if layout.resized else pixels
    return decoded


@contextmanager
def _opened(picture: Picture) -> Iterator[Image.Image]:
    try:
        with picture.open() as stream, Image.open(stream) as image:
            _check_pixels(picture, image)
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds for damaged files
        raise UserError(
            f"{picture.place} cannot be read as an image ({error}); replace it or remove it"
        ) from error


def _check_pixels(picture: Picture, image: Image.Image) -> None:
    if image.width * image.height > _MAX_PIXELS:
        raise UserError(
            f"{picture.place} is {_size(image.size)}, more than {_MAX_PIXELS} pixels in all; make "
            "it smaller or remove it"
        )


def _is_grey(image: Image.Image) -> bool:
    return image.mode in ("1", "L", "LA", "I") or image.mode.startswith("I;16")


def _pixels(image: Image.Image, channels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return the pixels ``[channels, H, W]``; what is transparent loses that."""
    if image.mode.startswith("I"):
        image = _from_16_bits(image)
    if channels == 1:
        return np.array(image.convert("L"))[None]
    if "transparency" in image.info:  # Pillow warns of dropping it in one step
        image = image.convert("RGBA")
    return np.ascontiguousarray(np.array(image.convert("RGB")).transpose(2, 0, 1))


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255: Pillow would clip it."""
    values = np.array(image, dtype=np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its values do not lie within 16 bits")
    return Image.fromarray(np.rint(values / 257).astype(np.uint8), mode="L")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels (width, height)"
