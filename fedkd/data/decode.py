"""Picture files decoded into one array of one size, greyscale or RGB."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, TYPE_CHECKING, Generic, TypeVar, cast

import torch
from PIL import Image, UnidentifiedImageError

from fedkd.data import pixels
from fedkd.data.images import resize
from fedkd.data.mapped import new_pixels
from fedkd.data.source import MAX_BYTES
from fedkd.errors import UserError, describe_exhaustion
from fedkd.util.parallel import available_cores, run_each
from fedkd.util.progress import SlowProgress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BY_FORMAT = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k"),
    "AVIF": (".avif",),
}
ENDINGS = frozenset(ending for endings in _BY_FORMAT.values() for ending in endings)
"""How the names of files end that are read as pictures, in lower case."""

_MAX_PIXELS = 50_000_000
"""Most pixels of one picture: a small file can declare any number of them."""
_NAMED = 5
"""At most so many damaged pictures are named; the others are counted."""
_MOST_FLATTENED = 0.1
"""Pictures of more than 8 bits that may come out almost without contrast, as a share."""
_OPENED_AT_ONCE = 32
"""Pictures that a thread opens one after the other before it takes the next ones."""
_MAX_THREADS = 32

Result = TypeVar("Result")


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
class Decoded:
    """Pictures as one array.

    Attributes:
        images: uint8 ``[N, C, H, W]``, greyscale if all pictures are, else RGB.
        warnings: sentences on what may not be as the user thinks.
    """

    images: torch.Tensor
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Outcome(Generic[Result]):
    """What came of one picture: a result, or a problem."""

    result: Result | None
    problem: str = ""


@dataclass(frozen=True)
class _Header:
    """What the header of one picture says, its size already turned upright."""

    size: tuple[int, int]
    grey: bool
    kind: str | None
    top: float | None
    animated: bool

    @classmethod
    def of(cls, image: Image.Image) -> _Header:
        """Look at an opened picture of which nothing is decoded yet."""
        facts = (pixels.upright_size(image), pixels.is_grey(image))
        depth = (pixels.deep_kind(image), pixels.declared_top(image))
        # Last, since Pillow seeks for it. The second image of an MPO is a camera's own affair.
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return cls(*facts, *depth, animated)


class _Reader:
    """Opens pictures, on several threads, and collects what is wrong with them.

    Args:
        pictures: N of them.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures

    def each(self, doing: str, work: Callable[[int, Image.Image], Result]) -> list[Result]:
        """Call ``work`` with the index of every picture and the picture, opened.

        Args:
            doing: what is done, for the display of progress.
            work: called by several threads at once.

        Returns:
            The results, in the order of the pictures.

        Raises:
            UserError: some raised an error; names the first few and says how many there are.
        """
        outcomes: dict[int, list[_Outcome[Result]]] = {}
        starts = range(0, len(self._pictures), _OPENED_AT_ONCE)

        def open_some(start: int) -> list[_Outcome[Result]]:
            end = min(start + _OPENED_AT_ONCE, len(self._pictures))
            return [self._open(index, work) for index in range(start, end)]

        threads = max(1, min(available_cores(), _MAX_THREADS, len(starts)))
        with warnings.catch_warnings(), SlowProgress(doing, len(self._pictures)) as progress:
            warnings.simplefilter("ignore")  # Pillow's, of metadata and sizes
            for start, some in run_each(starts, open_some, threads=threads):
                outcomes[start] = some
                progress.add(len(some))
        in_order = [outcome for start in starts for outcome in outcomes[start]]
        if problems := [each.problem for each in in_order if each.problem]:
            raise UserError(_join(problems))
        return [cast("Result", each.result) for each in in_order]

    def _open(self, index: int, work: Callable[[int, Image.Image], Result]) -> _Outcome[Result]:
        picture = self._pictures[index]
        try:
            with picture.open() as stream, Image.open(stream, formats=_formats()) as image:
                _check_pixels(image)
                return _Outcome(work(index, image))
        except UserError as error:
            problem = f"{picture.place} {error}"
        except UnidentifiedImageError:
            known = ", ".join(_BY_FORMAT)
            problem = f"{picture.place} cannot be read as an image: it is none of {known}"
        except Exception as error:  # Pillow's decoders raise all kinds for damaged files
            if describe_exhaustion(error):
                raise
            reason = " ".join(str(error).split())
            problem = f"{picture.place} cannot be read as an image ({reason})"
        return _Outcome(None, problem)

    def headers(self) -> list[_Header]:
        """Return what every header says.

        Raises:
            UserError: pictures are damaged, those among them of which only the pixels show it.
        """
        try:
            return self.each("looking at pictures", lambda _, image: _Header.of(image))
        except UserError:
            self.each("looking for damaged pictures", lambda _, image: image.load())
            raise


def _join(problems: Sequence[str]) -> str:
    more = len(problems) - _NAMED
    rest = f"; and {more} more" if more > 0 else ""
    them = "it" if len(problems) == 1 else "them"
    return f"{'; '.join(problems[:_NAMED])}{rest}; replace {them} or remove {them}"


def read_pictures(pictures: Sequence[Picture], image_size: int | None) -> Decoded:
    """Read pictures, all of them into one size and one number of channels.

    Args:
        pictures: N of them, at least one.
        image_size: height and width to resize to in pixels, or None to leave them as they are.

    Raises:
        UserError: pictures are damaged or too large, sizes differ and none is given, or values of
            more than 8 bits are on no known scale.
    """
    if not pictures:
        raise UserError("it has no images")
    reader = _Reader(pictures)
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
    return Decoded(images, (*_of_depths(depths, tops), *_of_frames(headers)))


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return the formats that are read, as far as this Pillow was built with them."""
    Image.init()
    return tuple(name for name in _BY_FORMAT if name in Image.OPEN)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > _MAX_PIXELS:
        raise UserError(
            f"is {_size(image.size)}, more than {_MAX_PIXELS} pixels in all, and must be smaller"
        )


def _check_sizes(
    pictures: Sequence[Picture], headers: Sequence[_Header], image_size: int | None
) -> None:
    first = headers[0].size
    for picture, header in zip(pictures, headers, strict=True):
        if header.size != first and image_size is None:
            sizes = Counter(header.size for header in headers)
            raise UserError(
                f"its images differ in size ({len(sizes)} sizes): {pictures[0].place} is "
                f"{_size(first)} but {picture.place} is {_size(header.size)}; set data.image_size "
                "to resize them"
            )


def _measure_depths(reader: _Reader, headers: Sequence[_Header]) -> dict[str, pixels.Depth]:
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
            f"is {_size((width, height))} once turned upright, while others are "
            f"{_size((wanted[1], wanted[0]))}; set data.image_size to resize all of them, or"
        )
    return decoded


def _of_depths(depths: dict[str, pixels.Depth], tops: dict[str, float]) -> list[str]:
    """Say how values were scaled where no header declares it.

    Raises:
        UserError: many pictures come out almost without contrast, so that depths are mixed.
    """
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


def _of_frames(headers: Sequence[_Header]) -> list[str]:
    animated = sum(header.animated for header in headers)
    if not animated:
        return []
    return [f"{animated} pictures have several frames or pages; only the first of each is read"]


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} pixels (width, height)"
