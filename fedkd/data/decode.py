"""Picture files decoded into one array of one size, greyscale or RGB."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from fedkd.data import pixels
from fedkd.data.images import resize
from fedkd.data.mapped import new_pixels
from fedkd.data.picture_reader import Picture, PictureHeader, PictureReader, size_text
from fedkd.data.source import MAX_BYTES
from fedkd.errors import UserError

_MOST_FLATTENED = 0.1
"""Pictures of more than 8 bits that may come out almost without contrast, as a share."""


@dataclass(frozen=True)
class Decoded:
    """Pictures as one array.

    Attributes:
        images: uint8 ``[N, C, H, W]``, greyscale if all pictures are, else RGB.
        warnings: sentences on what may not be as the user thinks.
    """

    images: torch.Tensor
    warnings: tuple[str, ...]


def read_pictures(pictures: Sequence[Picture], image_size: int | None) -> Decoded:
    """Read pictures, all of them into one size and one number of channels.

    ``image_size`` is height and width in pixels; None leaves them as they are.

    Raises:
        UserError: pictures are damaged or too large, sizes differ and none is given, or values of
            more than 8 bits are on no known scale.
    """
    if not pictures:
        raise UserError("it has no images")
    reader = PictureReader(pictures)
    headers = reader.headers()
    _check_sizes(pictures, headers, image_size)
    width, height = (image_size, image_size) if image_size else headers[0].size
    shape = (len(pictures), 1 if all(header.grey for header in headers) else 3, height, width)
    if (needed := math.prod(shape)) > MAX_BYTES:
        raise UserError(
            f"its {len(pictures)} images take {needed} bytes of memory, more than {MAX_BYTES}; "
            "set data.image_size to a smaller size"
        )
    depths = _measure_depths(reader, headers)
    tops = {kind: depth.top(kind) for kind, depth in depths.items()}
    images = new_pixels(shape)

    def decode(index: int, image: Image.Image) -> bool:
        """Put a picture in its place; return whether it comes out almost without contrast."""
        kind, top = headers[index].kind, headers[index].top
        decoded = pixels.to_pixels(image, shape[1], top or tops.get(kind or "", 255.0))
        images[index] = _fit(torch.from_numpy(decoded), (height, width), image_size)
        return top is None and kind in depths and pixels.loses_contrast(image, decoded)

    for index, flattened in enumerate(reader.each("decoding pictures", decode)):
        if flattened:
            depths[headers[index].kind or ""].flattened.append(pictures[index].place)
    sentences = _of_depths(depths, tops)
    if animated := sum(header.animated for header in headers):
        sentences.append(
            f"{animated} pictures have several frames or pages; only the first of each is read"
        )
    return Decoded(images, tuple(sentences))


def _check_sizes(
    pictures: Sequence[Picture], headers: Sequence[PictureHeader], image_size: int | None
) -> None:
    first = headers[0].size
    for picture, header in zip(pictures, headers, strict=True):
        if header.size != first and image_size is None:
            sizes = Counter(header.size for header in headers)
            raise UserError(
                f"its images differ in size ({len(sizes)} sizes): {pictures[0].place} is "
                f"{size_text(first)} but {picture.place} is {size_text(header.size)}; set "
                "data.image_size to resize them"
            )


def _measure_depths(
    reader: PictureReader, headers: Sequence[PictureHeader]
) -> dict[str, pixels.Depth]:
    """Return the range of values of all deep pictures whose header does not declare it."""
    depths: dict[str, pixels.Depth] = defaultdict(pixels.Depth)

    def measure(index: int, image: Image.Image) -> tuple[float, float] | None:
        header = headers[index]
        measured = header.kind is not None and header.top is None
        return pixels.value_range(image) if measured else None

    if any(header.kind for header in headers):
        ranges = reader.each("measuring the depth of pictures", measure)
        for header, values in zip(headers, ranges, strict=True):
            if header.kind is not None and values is not None:
                depths[header.kind].add(*values)
    if (colour := depths.pop(pixels.HIGH_BYTE, None)) is not None and colour.most < 128:
        raise UserError(
            f"its {colour.count} colour pictures of 16 bits a channel use only the lower half of "
            "these or less, so their true depth is another and they would come out dark; save "
            "them with 8 bits a channel"
        )
    return dict(depths)


def _fit(decoded: torch.Tensor, wanted: tuple[int, int], image_size: int | None) -> torch.Tensor:
    if image_size is not None:
        return resize(decoded[None], image_size)[0]
    height, width = decoded.shape[1:]
    if (height, width) != wanted:
        raise UserError(
            f"is {size_text((width, height))} once turned upright, while others are "
            f"{size_text((wanted[1], wanted[0]))}; set data.image_size to resize all of them, or"
        )
    return decoded


def _of_depths(depths: dict[str, pixels.Depth], tops: dict[str, float]) -> list[str]:
    """Say how values were scaled where no header declares it."""
    sentences = []
    for kind, depth in depths.items():
        if len(depth.flattened) > _MOST_FLATTENED * depth.count:
            raise UserError(
                f"{len(depth.flattened)} of its {depth.count} pictures of more than 8 bits, "
                f"{depth.flattened[0]} among them, would come out almost without contrast, since "
                f"the values of others reach {depth.most:g}; save all of them with one depth"
            )
        if depth.flattened:
            sentences.append(
                f"{len(depth.flattened)} pictures come out almost without contrast, such as "
                f"{depth.flattened[0]}: their values are small beside those of others"
            )
        if kind == pixels.FLOAT or tops[kind] < 65535:
            sentences.append(
                f"the values of {depth.count} pictures of more than 8 bits run from "
                f"{depth.least:g} to {depth.most:g}; they are read with 0 as black and "
                f"{tops[kind]:g} as white"
            )
    return sentences
