"""Which types and shapes arrays of an ``.npz`` archive may have, and how to mend them."""

from __future__ import annotations

from typing import Any

import numpy as np

OF_ANY_KIND = ("inputs", "labels", "test_inputs", "test_labels")
"""The same for examples that are no images; see :func:`fedkd.data.images.kind_of`."""

_USUAL_CHANNELS = (1, 3, 4)
_MAX_CHANNELS = 16


def find_misfit(key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    """Return what is wrong with the type or the shape of an array, and the remedy."""
    given = f"the array {key} is {dtype} {list(shape)}; it must be"
    if key.endswith("labels"):
        if dtype.kind in "iu" and len(shape) == 1:
            return None
        return f"{given} integers [N], a class for each example: {_mend_labels(key, shape, dtype)}"
    if key in OF_ANY_KIND:
        if 0 in shape:
            return f"{given} not empty"
        if (dtype.kind == "f" and len(shape) > 1) or (dtype.kind in "iu" and len(shape) == 2):
            return None
        return f"{given} floats [N, F] or of more dimensions, or integers [N, L] of token ids"
    if dtype != np.uint8 or len(shape) not in (3, 4):
        return (
            f"{given} uint8 [N, H, W] or [N, C, H, W] with values 0 to 255: "
            f"{_mend_images(key, shape, dtype)}"
        )
    if 0 in shape:
        return f"{given} not empty"
    if len(shape) == 4 and channel_axis(shape) is None:
        last_first = f"{key}.transpose(0, 3, 1, 2)"
        return (
            f"{given} [N, C, H, W] with at most {_MAX_CHANNELS} channels, and it is not clear "
            f"which of its dimensions are channels; if they come last, save {last_first}, which "
            "moves them and keeps the pixels in place (reshape would not)"
        )
    return None


def _mend_labels(key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    if len(shape) == 2 and shape[1] == 1:
        return f"save {key}[:, 0]"
    if len(shape) == 2:
        return f"if a row marks its class by its largest value, save {key}.argmax(1)"
    if dtype.kind in "USO":
        return f"save numpy.unique({key}, return_inverse=True)[1] for text"
    return f"save {key}.astype(int) if they are whole numbers from 0"


def _mend_images(key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str:
    if dtype.kind == "O":
        return "bring the images to one size and save them as one array, numpy.stack(images)"
    if len(shape) not in (3, 4):
        return f"save {key}.reshape(N, H, W) if a row holds the pixels of an image row by row"
    if dtype.kind == "b":
        return f"save {key}.astype('uint8') * 255"
    if dtype.kind == "f":
        return f"save ({key} * 255).round().astype('uint8') if they run from 0 to 1"
    return f"save {key}.astype('uint8') if they run from 0 to 255, else scale them first"


def channel_axis(shape: tuple[int, ...]) -> int | None:
    """Return which axis of ``[N, ., ., .]`` counts channels: 1 or 3; None if that is not clear.

    Channels are 1, 3 or 4 mostly. Where both or neither of the axes fits, the images are taken to
    be square.
    """
    _, first, middle, last = shape
    if (first in _USUAL_CHANNELS) != (last in _USUAL_CHANNELS):
        return 1 if first in _USUAL_CHANNELS else 3
    if first in _USUAL_CHANNELS:
        if first == middle == last == 1:
            return 1
        if (middle == last) == (first == middle):
            return None
        return 1 if middle == last else 3
    square_if_last = first == middle != last
    return 1 if first <= _MAX_CHANNELS and not square_if_last else None
