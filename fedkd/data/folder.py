"""Images from picture files: a folder of one's own, or a set from Hugging Face."""

from __future__ import annotations

import re
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fedkd.data.decode import Picture, decode, find_layout
from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.errors import UserError

_SPLIT_NAMES = frozenset({"train", "test", "val", "valid", "validation"})


def read_folder(name: str, path: Path, image_size: int | None) -> Source:
    """Read a folder of pictures with one subfolder per class, as torchvision's ImageFolder.

    If the folder has the subfolders ``train`` and ``test``, the classes are below them instead.

    Raises:
        UserError: there are no classes or no pictures, a picture is unreadable, sizes differ
            though no ``image_size`` is given, or training and test set have other classes.
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; a relative path is seen from {Path.cwd()}")
    inner = {entry.name for entry in path.iterdir() if entry.is_dir()}
    split = {"train", "test"} <= inner
    if not split and inner and inner <= _SPLIT_NAMES:
        raise UserError(
            f"{path} has only the folders {', '.join(sorted(inner))}: a test set needs both train "
            "and test; without one, name the folder of the classes itself"
        )
    samples, classes = _list_folder(path / "train" if split else path)
    test_samples, test_classes = _list_folder(path / "test") if split else ([], classes)
    if classes != test_classes:
        odd = ", ".join(sorted(set(classes) ^ set(test_classes)))
        raise UserError(f"{path}: train and test must have the same classes, but differ in {odd}")
    pictures = [Picture(file, partial(_open_file, file)) for file, _ in samples + test_samples]
    layout = find_layout(pictures, image_size)
    parts = [
        Images(decode(chosen, layout), torch.tensor([label for _, label in labelled]))
        for chosen, labelled in (
            (pictures[: len(samples)], samples),
            (pictures[len(samples) :], test_samples),
        )
        if labelled
    ]
    return Source(name, parts[0], parts[1] if split else None, classes)


def read_hugging_face(name: str, repository: str, image_size: int | None) -> Source:
    """Read the splits ``train`` and ``test`` of an image classification set from Hugging Face.

    Image and label are found by the types of the columns; of several label columns, such as
    coarse and fine ones, the one with the most classes counts.

    Raises:
        UserError: the set cannot be had, or has no such split or columns.
    """
    import datasets

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise UserError("write hf:OWNER/NAME, as in the address of the data set's page")
    try:
        loaded = datasets.load_dataset(repository)
    except Exception as error:  # by network, repository and format, it raises all kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{repository} could not be loaded from the Hugging Face Hub or its local cache "
            f"({type(error).__name__}: {reason}); check its name and the network, or download it "
            "and use folder:PATH"
        ) from error
    if "train" not in loaded:
        raise UserError(f"it has no split named train, only {', '.join(map(str, loaded))}")
    features = loaded["train"].features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(images) != 1 or not labels:
        raise UserError(
            "it needs one column of type Image and one of type ClassLabel, but has "
            + ", ".join(f"{key} ({type(kind).__name__})" for key, kind in features.items())
        )
    label = max(labels, key=lambda key: int(features[key].num_classes))
    names = [split for split in ("train", "test") if split in loaded]
    pictures = {part: _pictures_of(loaded[part], images[0], part) for part in names}
    layout = find_layout([p for part in names for p in pictures[part]], image_size)
    parts = [
        Images(decode(pictures[part], layout), _labels_of(loaded[part], label)) for part in names
    ]
    return Source(
        name, parts[0], parts[1] if len(parts) > 1 else None, tuple(features[label].names)
    )


def _list_folder(path: Path) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(path))
    except OSError as error:
        raise UserError(f"{path} needs one folder of images per class ({error})") from error
    return found.samples, tuple(found.classes)


def _open_file(path: str) -> IO[bytes]:
    return Path(path).open("rb")


def _pictures_of(split: Any, column: str, part: str) -> list[Picture]:
    """List pictures of a split; their bytes are read when one is opened."""
    import datasets

    raw = split.cast_column(column, datasets.Image(decode=False))

    def opener(index: int) -> IO[bytes]:
        stored = raw[index][column]
        if stored and stored["bytes"] is not None:
            return BytesIO(stored["bytes"])
        if stored and stored["path"]:
            return _open_file(stored["path"])
        raise ValueError("it is missing")

    return [
        Picture(f"image {index} of split {part}", partial(opener, index))
        for index in range(len(raw))
    ]


def _labels_of(split: Any, column: str) -> torch.Tensor:
    if column not in split.features:
        raise UserError(f"its test split has no column {column}")
    labels = np.array(split[column][:], dtype=object)
    return torch.tensor([-1 if label is None else int(label) for label in labels])
