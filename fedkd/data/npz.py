"""Images and labels from an ``.npz`` archive of NumPy arrays, judged before they are decoded."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib import format as npy_format

from fedkd.data.images import Images
from fedkd.data.source import MAX_BYTES, MAX_CLASSES, Source
from fedkd.errors import UserError

Array = npt.NDArray[Any]

NAMES = ("images", "labels", "test_images", "test_labels")
_MAX_CHANNELS = 16
_HEADERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


def read_npz(name: str, path: Path, image_size: int | None = None) -> Source:  # noqa: ARG001 -- one signature for all readers
    """Read arrays ``images`` and ``labels``, and ``test_images`` and ``test_labels`` if present.

    Images are uint8 ``[N, H, W]`` or ``[N, C, H, W]``, labels integers ``[N]`` from 0. The number
    of classes is the highest label plus one. Sizes are bounded before anything is decoded, and
    nothing is unpickled.

    Raises:
        UserError: the file is missing or damaged, or an array is not as above.
    """
    return source_of(name, _load_arrays(path))


def source_of(
    name: str, arrays: Mapping[str, Array], classes: tuple[str, ...] | None = None
) -> Source:
    """Return arrays as a source; see :func:`read_npz`.

    Args:
        name: of the source.
        arrays: by their names in :data:`NAMES`.
        classes: names of the classes; by default their numbers.

    Raises:
        UserError: an array is missing or not as it should be.
    """
    for key in NAMES[: 4 if arrays.keys() & set(NAMES[2:]) else 2]:
        if key not in arrays:
            raise UserError(f"the array {key} is missing")
        if problem := _find_misfit(key, arrays[key].shape, arrays[key].dtype):
            raise UserError(problem)
    train = _as_images(arrays, "images", "labels")
    test = _as_images(arrays, "test_images", "test_labels") if "test_images" in arrays else None
    num_classes = 1 + max(int(part.labels.max()) for part in (train, test) if part is not None)
    return Source(name, train, test, classes or tuple(str(label) for label in range(num_classes)))


def _load_arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise UserError(f"there is no file {path}; a relative path is seen from {Path.cwd()}")
    try:
        with zipfile.ZipFile(path) as archive:
            problem = _find_problem(archive)
        if problem is None:
            with np.load(path, allow_pickle=False) as stored:
                return {key: stored[key] for key in _wanted(set(stored.files))}
    except Exception as error:  # a damaged archive raises all kinds, at any depth
        raise UserError(
            f"{path} cannot be read as an .npz archive ({error}); write it with "
            "numpy.savez(path, images=..., labels=...)"
        ) from error
    raise UserError(f"{path}: {problem}")


def _wanted(names: set[str]) -> list[str]:
    return [name for name in NAMES if name in names]


def _find_problem(archive: zipfile.ZipFile) -> str | None:
    """Judge the arrays by their headers, before any of them is decoded."""
    names = {member.removesuffix(".npy") for member in archive.namelist()}
    needed = ["images", "labels"]
    if names & {"test_images", "test_labels"}:
        needed += ["test_images", "test_labels"]
    if missing := [key for key in needed if key not in names]:
        have = ", ".join(sorted(names)[:20]) or "none"
        return f"the array {missing[0]} is missing; the archive has {have}"
    total = 0
    for key in needed:
        member = archive.getinfo(f"{key}.npy")
        with archive.open(member) as stream:
            read = _HEADERS.get(npy_format.read_magic(stream))
            if read is None:
                return f"the array {key} is of an unknown version of NumPy's format"
            shape, _, dtype = read(stream)
            held = member.file_size - stream.tell()
        size = math.prod(shape) * dtype.itemsize
        if problem := _find_misfit(key, shape, dtype):
            return problem
        if size > held:
            return f"the array {key} is damaged: it declares {size} bytes but holds {held}"
        total += size
    if total > MAX_BYTES:
        return f"its arrays take {total} bytes, more than {MAX_BYTES}; use smaller or fewer images"
    return None


def _find_misfit(key: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> str | None:
    found = f"the array {key} is {dtype} {list(shape)}; it must be"
    if key.endswith("labels"):
        fits = np.issubdtype(dtype, np.integer) and len(shape) == 1
        return None if fits else f"{found} integers [N]"
    if dtype != np.uint8 or len(shape) not in (3, 4):
        return f"{found} uint8 [N, H, W] or [N, C, H, W] with values 0 to 255"
    if len(shape) == 4 and shape[1] > _MAX_CHANNELS:
        return (
            f"{found} uint8 [N, C, H, W] with at most {_MAX_CHANNELS} channels; channels come "
            "before height and width"
        )
    if 0 in shape:
        return f"{found} not empty"
    return None


def _as_images(arrays: Mapping[str, Array], images: str, labels: str) -> Images:
    pixels, numbers = arrays[images], arrays[labels]
    if len(pixels) != len(numbers):
        raise UserError(f"{images} has {len(pixels)} images but {labels} has {len(numbers)} labels")
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most >= MAX_CLASSES:
        raise UserError(
            f"{labels} run from {least} to {most}, but must be the numbers of classes, from 0 and "
            f"below {MAX_CLASSES}"
        )
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    return Images(
        torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(numbers.astype(np.int64))
    )
