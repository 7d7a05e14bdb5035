"""Picture files opened on several threads, and what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Generic, TypeVar, cast

from PIL import Image, UnidentifiedImageError

from fedkd.data import pixels
from fedkd.errors import UserError, one_line, raise_exhaustion
from fedkd.util.parallel import available_cores, run_each
from fedkd.util.progress import SlowProgress

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
class _Outcome(Generic[Result]):
    """What came of one picture: a result, or a problem."""

    result: Result | None
    problem: str = ""


@dataclass(frozen=True)
class PictureHeader:
    """What the header of one picture says, its size already turned upright."""

    size: tuple[int, int]
    grey: bool
    kind: str | None
    top: float | None
    animated: bool

    @classmethod
    def of(cls, image: Image.Image) -> PictureHeader:
        """Look at an opened picture of which nothing is decoded yet."""
        facts = (pixels.upright_size(image), pixels.is_grey(image))
        depth = (pixels.deep_kind(image), pixels.declared_top(image))
        # Last, since Pillow seeks for it. The second image of an MPO is a camera's own affair.
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        return cls(*facts, *depth, animated)


class PictureReader:
    """Opens pictures, on several threads, and collects what is wrong with them."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures

    def each(self, doing: str, work: Callable[[int, Image.Image], Result]) -> list[Result]:
        """Call ``work`` with the index of every picture and the picture, opened.

        Several threads call it at once.

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
            raise_exhaustion(error)
            problem = f"{picture.place} cannot be read as an image ({one_line(error)})"
        return _Outcome(None, problem)

    def headers(self) -> list[PictureHeader]:
        """Return what every header says.

        Raises:
            UserError: pictures are damaged, those among them of which only the pixels show it.
        """
        try:
            return self.each("looking at pictures", lambda _, image: PictureHeader.of(image))
        except UserError:
            self.each("looking for damaged pictures", lambda _, image: image.load())
            raise


def _join(problems: Sequence[str]) -> str:
    more = len(problems) - _NAMED
    rest = f"; and {more} more" if more > 0 else ""
    them = "it" if len(problems) == 1 else "them"
    return f"{'; '.join(problems[:_NAMED])}{rest}; replace {them} or remove {them}"


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return the formats that are read, as far as this Pillow was built with them."""
    Image.init()
    return tuple(name for name in _BY_FORMAT if name in Image.OPEN)


def _check_pixels(image: Image.Image) -> None:
    if image.width * image.height > _MAX_PIXELS:
        raise UserError(
            f"is {size_text(image.size)}, more than {_MAX_PIXELS} pixels in all, and must be "
            "smaller"
        )


def size_text(size: tuple[int, int]) -> str:
    """Return a size in words."""
    return f"{size[0]} x {size[1]} pixels (width, height)"
