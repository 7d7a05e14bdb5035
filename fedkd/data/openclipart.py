"""Clip art of Debian's package openclipart-png: colour pictures of twelve subjects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO

import torch
from PIL import Image

from fedkd.data.decode import read_pictures
from fedkd.data.images import Images
from fedkd.data.picture_reader import Picture
from fedkd.data.pixels import on_white
from fedkd.data.source import Source
from fedkd.errors import UserError
from fedkd.util.seeding import numpy_generator

SUBJECTS = (
    *("animals", "computer", "food", "geography", "office", "people", "plants", "recreation"),
    *("shapes", "signs_and_symbols", "tools", "transportation"),
)
SIDE = 96
"""Height and width of every picture, in pixels."""
MAX_FILES = 500
"""Most pictures of one subject; of more so many are drawn."""
_MAX_BYTES = 150_000
_MAX_PIXELS = 1_500_000
_BELOW = ("", "png", "share/openclipart/png", "usr/share/openclipart/png")
_INSTALLED = (Path("/usr/share/openclipart/png"), Path("/usr/local/share/openclipart/png"))


def read_openclipart(name: str, path: Path | None = None, image_size: int | None = None) -> Source:  # noqa: ARG001 -- one signature for all readers
    """Read at most 500 pictures of each subject, on white, square, of 96 pixels.

    Files above 150 kB or 1.5 megapixels are left out, and files of equal content but for the
    first. The same files are drawn every time. By default ``path`` is where the package is
    installed. All pictures have one size.

    Raises:
        UserError: the package is not there, or a picture is damaged.
    """
    top = find_openclipart(path)
    pictures, labels = [], []
    known: set[bytes] = set()
    for label, subject in enumerate(SUBJECTS):
        files = list(_find_usable(top / subject, known))
        order = numpy_generator(0, f"openclipart-{subject}").permutation(len(files))
        chosen = sorted(files[index] for index in order[:MAX_FILES])
        pictures += [Picture(str(file), partial(_open_square, file)) for file in chosen]
        labels += [label] * len(chosen)
    decoded = read_pictures(pictures, None)
    images = Images(decoded.images, torch.tensor(labels))
    return Source(name, images, None, SUBJECTS, decoded.warnings)


def find_openclipart(path: Path | None) -> Path:
    """Return the folder of the subjects."""
    folders = _INSTALLED if path is None else tuple(path / below for below in _BELOW)
    for folder in folders:
        if all((folder / subject).is_dir() for subject in SUBJECTS):
            return folder
    place = "it is not installed" if path is None else f"{path} does not hold it"
    raise UserError(
        f"it needs the pictures of Debian's package openclipart-png, and {place}; install it with "
        "apt-get install openclipart-png, or unpack it (apt-get download openclipart-png; dpkg -x "
        "FILE FOLDER) and name the folder: openclipart:FOLDER"
    )


def _find_usable(folder: Path, known: set[bytes]) -> Iterator[Path]:
    """Yield the pictures of a subject that are small enough and not known, and note them."""
    for file in sorted(folder.rglob("*.png")):
        if not file.is_file() or file.stat().st_size > _MAX_BYTES:
            continue
        content = file.read_bytes()
        digest = hashlib.sha256(content).digest()
        if digest in known:
            continue
        try:
            with Image.open(BytesIO(content), formats=["PNG"]) as image:
                is_small = image.width * image.height <= _MAX_PIXELS
        except Exception:  # read_pictures says what is wrong with it
            is_small = True
        if is_small:
            known.add(digest)
            yield file


def _open_square(file: Path) -> IO[bytes]:
    """Return a picture on a white square, as a file of its own."""
    with Image.open(file, formats=["PNG"]) as image:
        square = on_white(image, (max(image.size), max(image.size)))
    stream = BytesIO()
    square.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(stream, "BMP")
    stream.seek(0)
    return stream
