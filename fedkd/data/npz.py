"""Examples and labels from an ``.npz`` archive of NumPy arrays, checked before decoding."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy_format

from fedkd.data.images import Images
from fedkd.data.npz_arrays import OF_ANY_KIND, channel_axis, find_misfit
from fedkd.data.source import MAX_BYTES, MAX_CLASSES, MAX_VALUE, Source
from fedkd.errors import UserError, one_line, raise_exhaustion

Array = npt.NDArray[Any]

NAMES = ("images", "labels", "test_images", "test_labels")
_OTHER_NAMES = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
    ("data", "target"),
    ("X", "y"),
)
"""What other tools call these arrays, in the order of :data:`NAMES`."""

_MAX_HEADER = 10_000
_MAX_TOKEN = 1 << 24
_HEADERS = {
    (1, 0): (2, npy_format.read_array_header_1_0),
    (2, 0): (4, npy_format.read_array_header_2_0),
}
"""By version of the format: bytes of the header's length, and what reads the header."""


@dataclass(frozen=True)
class _Header:
    """What one array declares, and how many bytes follow."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    held: int

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npz(name: str, path: Path, image_size: int | None = None) -> Source:  # noqa: ARG001 -- one signature for all readers
    """Read arrays ``images`` and ``labels``, and ``test_images`` and ``test_labels`` if present.

    Images are uint8 ``[N, H, W]``, ``[N, C, H, W]`` or, of 1, 3 or 4 channels, ``[N, H, W, C]``;
    labels are integers ``[N]`` from 0. In place of images, ``inputs`` are floats ``[N, F]`` of a
    table whose columns are standardized already, floats of more dimensions, or integers ``[N, L]``,
    the token ids of texts. The number of classes is the highest label plus one. Sizes
    are bounded before anything is decoded, and nothing is unpickled.

    Raises:
        UserError: the file is missing or damaged, or an array is not as above.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}; a relative path is seen from {Path.cwd()}")
    try:
        return source_of(name, _read_arrays(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a damaged archive raises all kinds, at any depth
        raise_exhaustion(error)
        raise UserError(
            f"{path} cannot be read as an .npz archive ({one_line(error)}); write it with "
            "numpy.savez(path, images=..., labels=...)"
        ) from error


def read_unlabelled_npz(name: str, path: Path, image_size: int | None = None) -> Source | None:  # noqa: ARG001 -- as above
    """Read an archive that has ``images`` but no ``labels``; None where it is another one.

    Raises:
        UserError: the array is not as for :func:`read_npz`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
            if "images.npy" not in members or "labels.npy" in members:
                return None
            images = _read_wanted(archive, ["images"])["images"]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception:  # read_npz says what is wrong
        return None
    blank = np.zeros(len(images), dtype=np.int64)
    made = _as_images({"images": images, "labels": blank}, "images", "labels")
    return Source(name, Images(made.images, torch.full_like(made.labels, -1)), None, ())


def source_of(
    name: str, arrays: Mapping[str, Array], classes: tuple[str, ...] | None = None
) -> Source:
    """Return arrays as a source; see :func:`read_npz`.

    By default classes are named by their numbers.

    Raises:
        UserError: an array is missing or not as it should be.
    """
    names = _names_in(arrays)
    for key in names[: 4 if arrays.keys() & set(names[2:]) else 2]:
        if key not in arrays:
            raise UserError(f"the array {key} is missing")
        if problem := find_misfit(key, arrays[key].shape, arrays[key].dtype):
            raise UserError(problem)
    train = _as_images(arrays, *names[:2])
    test = _as_images(arrays, *names[2:]) if names[2] in arrays else None
    labels = torch.cat([part.labels for part in (train, test) if part is not None])
    numbers = tuple(str(label) for label in range(int(labels.max()) + 1))
    return Source(name, train, test, classes or numbers, () if classes else _find_gaps(labels))


def _read_arrays(path: Path) -> dict[str, Array]:
    """Read the arrays once all their headers have been checked."""
    with zipfile.ZipFile(path) as archive:
        # Only what numpy.savez writes counts: another member may have the name without ending.
        held = [member for member in archive.namelist() if member.endswith(".npy")]
        names = [member.removesuffix(".npy") for member in held]
        return _read_wanted(archive, _find_wanted(names, archive.namelist()))


def _read_wanted(archive: zipfile.ZipFile, wanted: list[str]) -> dict[str, Array]:
    total = 0
    for key in wanted:
        with archive.open(f"{key}.npy") as stream:
            header = _read_header(key, stream, archive.getinfo(f"{key}.npy").file_size)
        _check_header(key, header)
        total += header.size
    if total > MAX_BYTES:
        raise UserError(
            f"its arrays take {total} bytes, more than {MAX_BYTES}; use smaller or fewer images"
        )
    arrays = {}
    for key in wanted:
        with archive.open(f"{key}.npy") as stream:
            arrays[key] = npy_format.read_array(stream, allow_pickle=False)
    return arrays


def _find_wanted(names: list[str], members: list[str]) -> list[str]:
    """Return the names of the arrays to read."""
    ours = _names_in(names)
    wanted = list(ours if set(ours[2:]) & set(names) else ours[:2])
    for key in wanted:
        if names.count(key) > 1:
            raise UserError(f"the array {key} stands in the archive twice")
        if key not in names:
            have = ", ".join(sorted(names or members)[:20]) or "none"
            raise UserError(f"the array {key} is missing; the archive has {have}{_renaming(names)}")
    return wanted


def _names_in(keys: Container[str]) -> tuple[str, str, str, str]:
    """Return the names of training and test arrays, of images or of other examples."""
    return NAMES if "images" in keys or "inputs" not in keys else OF_ANY_KIND


def _renaming(names: list[str]) -> str:
    """Return how to save an archive anew that has other tools' names, or nothing."""
    for others in _OTHER_NAMES:
        if set(others[:2]) <= set(names):
            pairs = zip(NAMES, others, strict=False)
            arguments = ", ".join(f"{ours}=a['{other}']" for ours, other in pairs if other in names)
            return f"; save it with numpy.savez(path, {arguments})"
    return ""


def _read_header(key: str, stream: IO[bytes], size: int) -> _Header:
    version = npy_format.read_magic(stream)
    if version not in _HEADERS:
        raise UserError(f"the array {key} is of an unknown version of NumPy's format")
    width, read = _HEADERS[version]
    length = int.from_bytes(stream.read(width), "little")
    if length > _MAX_HEADER:
        raise UserError(f"the array {key} is damaged: its header declares {length} bytes")
    stream.seek(-width, 1)
    shape, _, dtype = read(stream)
    return _Header(shape, dtype, size - stream.tell())


def _check_header(key: str, header: _Header) -> None:
    problem = find_misfit(key, header.shape, header.dtype)
    if problem is None and min(header.shape, default=0) < 0:
        problem = f"the array {key} is damaged: its shape is {list(header.shape)}"
    if problem is None and header.size > header.held:
        problem = (
            f"the array {key} is damaged: it declares {header.size} bytes but holds {header.held}"
        )
    if problem is not None:
        raise UserError(problem)


def _checked_inputs(name: str, values: Array) -> Array:
    """Return inputs of any kind as float32, or as int64 where they are token ids."""
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
        least, most, what = -MAX_VALUE, MAX_VALUE, "not finite numbers"
    else:
        least, most, what = 0, _MAX_TOKEN, "not token ids"
    if not ((values >= least) & (values <= most)).all():  # no comparison holds for NaN
        raise UserError(
            f"{name} has values that are {what} from {least:g} to {most:g}; replace or leave them "
            "out"
        )
    return values if values.dtype == np.float32 else values.astype(np.int64)


def _as_images(arrays: Mapping[str, Array], images: str, labels: str) -> Images:
    pixels, numbers = arrays[images], arrays[labels]
    if len(pixels) != len(numbers):
        raise UserError(f"{images} has {len(pixels)} examples but {labels} has {len(numbers)}")
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most >= MAX_CLASSES:
        raise UserError(
            f"{labels} run from {least} to {most}, but must be the numbers of classes, from 0 and "
            f"below {MAX_CLASSES}"
        )
    if images in OF_ANY_KIND:
        pixels = _checked_inputs(images, pixels)
    elif pixels.ndim == 3:
        pixels = pixels[:, None]
    elif channel_axis(pixels.shape) == 3:
        pixels = pixels.transpose(0, 3, 1, 2)
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(numbers.astype(np.int64))
    )


def _find_gaps(labels: torch.Tensor) -> tuple[str, ...]:
    """Return a sentence on classes of which there is no example, if there are any."""
    counts = torch.bincount(labels)
    empty = [str(label) for label in (counts == 0).nonzero()[:, 0].tolist()]
    if not empty:
        return ()
    first, remedy = int(labels.min()), "numpy.unique(labels, return_inverse=True)[1]"
    if len(empty) == first:
        remedy = "labels - 1" if first == 1 else f"labels - {first}"
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    sentence = (
        f"of {len(counts)} classes, {len(empty)} have no example (labels {', '.join(empty[:5])}"
        f"{more}), since labels count from 0; if there are no such classes, save {remedy} instead"
    )
    return (sentence,)
