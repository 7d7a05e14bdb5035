"""Images from picture files: a folder of one's own, or a set from Hugging Face."""

from __future__ import annotations

import re
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fedkd.data.decode import read_pictures
from fedkd.data.images import Images
from fedkd.data.listing import TEST, find_parts, list_flat, list_pictures
from fedkd.data.picture_reader import Picture
from fedkd.data.source import Source
from fedkd.errors import UserError, one_line, raise_exhaustion


def read_folder(name: str, path: Path, image_size: int | None) -> Source:
    """Read a folder of pictures with one subfolder per class, as torchvision's ImageFolder.

    If the folder has a training and a test part, the classes are below them instead; see
    :mod:`fedkd.data.listing`.

    Raises:
        UserError: there are no classes or no pictures, pictures are damaged, sizes differ though
            no ``image_size`` is given, or training and test set have other classes.
    """
    parts, notes = find_parts(path)
    listings = [list_pictures(folder) for folder in parts.values()]
    classes = listings[0].classes
    if odd := set(classes) ^ set(listings[-1].classes):
        raise UserError(
            f"{path}: {' and '.join(folder.name for folder in parts.values())} must have the same "
            f"classes, but differ in {', '.join(sorted(odd))}"
        )
    samples = [sample for listing in listings for sample in listing.samples]
    pictures = [Picture(file, partial(_open_file, file)) for file, _ in samples]
    decoded = read_pictures(pictures, image_size)
    labels = torch.tensor([label for _, label in samples])
    cut = len(listings[0].samples)
    return Source(
        name,
        Images(decoded.images[:cut], labels[:cut]),
        Images(decoded.images[cut:], labels[cut:]) if TEST in parts else None,
        classes,
        (*notes, *(w for listing in listings for w in listing.warnings()), *decoded.warnings),
    )


def read_flat_folder(name: str, path: Path, image_size: int | None) -> Source | None:
    """Read a folder that holds pictures and no folders as images without labels.

    Returns:
        The source, without classes, or None where the folder is another one.

    Raises:
        UserError: pictures are damaged, or sizes differ though no ``image_size`` is given.
    """
    listing = list_flat(path)
    if listing is None:
        return None
    files = [file for file, _ in listing.samples]
    pictures = [Picture(file, partial(_open_file, file)) for file in files]
    decoded = read_pictures(pictures, image_size)
    labels = torch.full((len(files),), -1)
    notes = (*listing.warnings(), *decoded.warnings)
    return Source(name, Images(decoded.images, labels), None, (), notes)


def read_hugging_face(name: str, repository: str, image_size: int | None) -> Source:
    """Read the splits ``train`` and ``test`` of an image classification set from Hugging Face.

    The types of the columns distinguish images from labels; of several label columns, such as
    coarse and fine ones, the one with the most classes counts.

    Raises:
        UserError: the set cannot be had, or has no such split or columns.
    """
    import datasets

    loaded = load_hugging_face(repository)
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
    decoded = read_pictures([p for part in names for p in pictures[part]], image_size)
    cut = len(pictures["train"])
    parts = [
        Images(images, _labels_of(loaded[part], label))
        for part, images in zip(names, (decoded.images[:cut], decoded.images[cut:]), strict=False)
    ]
    return Source(
        name,
        parts[0],
        parts[1] if len(parts) > 1 else None,
        tuple(features[label].names),
        decoded.warnings,
    )


@lru_cache(maxsize=4)
def load_hugging_face(repository: str) -> Any:
    """Return a set from the Hugging Face Hub or its local cache: splits by their names."""
    import datasets

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository):
        raise UserError("write hf:OWNER/NAME, as in the address of the data set's page")
    try:
        return datasets.load_dataset(repository)
    except Exception as error:  # by network, repository and format, it raises all kinds
        raise_exhaustion(error)
        raise UserError(
            f"{repository} could not be loaded from the Hugging Face Hub or its local cache "
            f"({type(error).__name__}: {one_line(error)}); check its name and the network, or "
            "download it and use folder:PATH"
        ) from error


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
