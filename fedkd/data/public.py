"""Public data sets by name, read from files that hold numbers and nothing that runs.

torchvision has the addresses of the sets. Its readers are used only if they unpickle nothing;
CIFAR, which it unpickles, is read from the binary version of the set.
"""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import torch

from fedkd.data.download import PublicFile, data_directory, find_file, read_files, read_members
from fedkd.data.images import Images
from fedkd.data.source import Source
from fedkd.errors import UserError, raise_exhaustion
from fedkd.registry import TORCHVISION_SETS

Bytes = npt.NDArray[np.uint8]

_DEBIAN = Path("/usr/share/datasets")
_MAX_MEMBER = 1 << 30
_IDX_TYPES: dict[int, np.dtype[Any]] = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
_CIFAR = "https://www.cs.toronto.edu/~kriz/"
_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_STL10_CLASSES = "airplane bird car cat deer dog horse monkey ship truck"
_DIGITS = "0 1 2 3 4 5 6 7 8 9"


def read_public(name: str) -> Source:
    """Read ``digits`` or a public data set.

    Raises:
        UserError: its files are damaged, or neither on this machine nor available for download.
    """
    readers: dict[str, Callable[[], Source]] = {
        "digits": _read_digits,
        "qmnist": _read_qmnist,
        "svhn": _read_svhn,
        "usps": _read_usps,
        "stl10": _read_stl10,
        "cifar10": partial(_read_cifar, "cifar10"),
        "cifar100": partial(_read_cifar, "cifar100"),
    }
    return readers.get(name, partial(_read_mnist_like, name))()


def _read_digits() -> Source:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    scaled = np.rint(pixels.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    return Source("digits", _images(scaled, labels), None, tuple(_DIGITS.split()))


def _read_mnist_like(name: str) -> Source:
    cls = _torchvision_class(name)
    advice = ""
    folders = _folders(name, f"{TORCHVISION_SETS[name]}/raw")
    if name == "fashion-mnist":
        folders = (*folders, _DEBIAN / name)
        advice = "on Debian, apt-get install dataset-fashion-mnist is enough"
    arrays = []
    for (file_name, md5), dims in zip(cls.resources, (3, 1, 3, 1), strict=True):
        file = PublicFile(file_name, tuple(mirror + file_name for mirror in cls.mirrors), md5)
        path = find_file(file, folders, advice=advice, unpacked=True)
        arrays.append(read_idx(path, dims))
    train, test = (_images(arrays[i][:, None], arrays[i + 1]) for i in (0, 2))
    return Source(name, train, test, tuple(cls.classes))


def _read_qmnist() -> Source:
    cls = _torchvision_class("qmnist")
    folders = _folders("qmnist", "QMNIST/raw")
    parts = []
    for split in ("train", "test"):
        arrays = []
        for (url, md5), dims in zip(cls.resources[split], (3, 2), strict=True):
            file = PublicFile(url.rpartition("/")[2], (url,), md5)
            arrays.append(read_idx(find_file(file, folders, unpacked=True), dims))
        images, labels = arrays
        # A label row begins with the class; writer, partition and the like follow.
        parts.append(_images(images[:, None], labels[:, :1].reshape(-1)))
    return Source("qmnist", parts[0], parts[1], tuple(cls.classes))


def _read_cifar(name: str) -> Source:
    """Read records of one label byte (CIFAR-100: coarse, then fine) and 3072 pixel bytes."""
    if name == "cifar10":
        folder, md5 = "cifar-10-batches-bin", "c32a1d4ab5d03f1284b67883e8d87530"
        archive, label_bytes = "cifar-10-binary.tar.gz", 1
        trains = [f"{folder}/data_batch_{number}.bin" for number in range(1, 6)]
        test, names = f"{folder}/test_batch.bin", None
    else:
        folder, md5 = "cifar-100-binary", "03b5dce01913d631647c71ecec9e9cb8"
        archive, label_bytes = "cifar-100-binary.tar.gz", 2
        trains = [f"{folder}/train.bin"]
        test, names = f"{folder}/test.bin", f"{folder}/fine_label_names.txt"
    contents = _read_archive(
        PublicFile(archive, (_CIFAR + archive,), md5),
        _folders(name, "."),
        [*trains, test, *([names] if names else [])],
        advice="only the binary version is read, since the Python version is pickled",
    )
    parts = []
    for members in (trains, [test]):
        batches = [_records(contents[m], m, label_bytes + 3072) for m in members]
        records = np.concatenate(batches)
        pixels = records[:, label_bytes:].reshape(-1, 3, 32, 32)
        parts.append(_images(pixels, records[:, label_bytes - 1]))
    text = contents[names].decode("utf-8", "replace") if names else _CIFAR10_CLASSES
    return Source(name, parts[0], parts[1], tuple(text.split()))


def _read_stl10() -> Source:
    cls = _torchvision_class("stl10")
    members = [f"stl10_binary/{part}_{what}.bin" for part in ("train", "test") for what in "Xy"]
    file = PublicFile(cls.filename, (cls.url,), cls.tgz_md5)
    contents = _read_archive(file, _folders("stl10", "."), members)
    parts = []
    for images, labels in (members[:2], members[2:]):
        pixels = _records(contents[images], images, 3 * 96 * 96).reshape(-1, 3, 96, 96)
        ones_based = _records(contents[labels], labels, 1)[:, 0].astype(np.int64)
        # Pixels lie column by column.
        parts.append(_images(pixels.transpose(0, 1, 3, 2), ones_based - 1))
    return Source("stl10", parts[0], parts[1], tuple(_STL10_CLASSES.split()))


def _read_svhn() -> Source:
    cls = _torchvision_class("svhn")
    splits = [cls(_find_published("svhn", cls, split), split=split) for split in ("train", "test")]
    train, test = (_images(split.data, split.labels) for split in splits)
    return Source("svhn", train, test, tuple(_DIGITS.split()))


def _read_usps() -> Source:
    cls = _torchvision_class("usps")
    splits = [
        cls(_find_published("usps", cls, split), train=split == "train")
        for split in ("train", "test")
    ]
    train, test = (_images(split.data[:, None], split.targets) for split in splits)
    return Source("usps", train, test, tuple(_DIGITS.split()))


def _find_published(name: str, cls: Any, split: str) -> str:
    """Return the folder of a file whose hash is the published one, for torchvision to read."""
    url, file_name, md5 = cls.split_list[split]
    file = PublicFile(file_name, (url,), md5)
    return str(find_file(file, _folders(name, "."), verify=True).parent)


def read_idx(path: Path, dims: int) -> npt.NDArray[Any]:
    """Read a file of the IDX format, in which MNIST is published, compressed by gzip or not.

    A file whose name ends in ``.gz`` is uncompressed.

    Returns:
        The array, uint8 or big-endian int32.

    Raises:
        UserError: the file is damaged, holds something else, or declares more than 1 GiB.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return _parse_idx(cast("IO[bytes]", stream), path, dims)
    except (OSError, EOFError, zlib.error) as error:
        raise_exhaustion(error)
        raise UserError(f"{path} is damaged ({error}); get it again") from error


def _parse_idx(stream: IO[bytes], path: Path, dims: int) -> npt.NDArray[Any]:
    head = stream.read(4 + 4 * dims)
    if len(head) < 4 + 4 * dims or head[:2] != b"\0\0" or head[3] != dims:
        raise UserError(f"{path} is not an IDX file of {dims} dimensions; get it again")
    dtype = _IDX_TYPES.get(head[2])
    if dtype is None:
        raise UserError(f"{path} has numbers of the unknown type {head[2]}; get it again")
    shape = tuple(int(size) for size in np.frombuffer(head, ">u4", offset=4))
    size = math.prod(shape) * dtype.itemsize
    if size > _MAX_MEMBER:
        raise UserError(f"{path} declares {size} bytes, more than any such set has; get it again")
    body = stream.read(size + 1)
    if len(body) != size:
        more = "more" if len(body) > size else f"only {len(body)}"
        raise UserError(f"{path} declares {size} bytes of content but has {more}; get it again")
    return np.frombuffer(body, dtype).reshape(shape)


def _read_archive(
    file: PublicFile, folders: tuple[Path, ...], members: list[str], advice: str = ""
) -> dict[str, bytes]:
    """Read members of an archive, from a folder where it was unpacked or from itself."""
    wanted = dict.fromkeys(members, _MAX_MEMBER)
    for folder in folders:
        if (contents := read_files(folder, wanted)) is not None:
            return contents
    return read_members(find_file(file, folders, advice=advice, verify=True), wanted)


def _records(content: bytes, what: str, size: int) -> Bytes:
    """Split ``content`` into records ``[N, size]``."""
    if not content or len(content) % size:
        raise UserError(f"{what} has {len(content)} bytes, not a multiple of {size}; get it again")
    return np.frombuffer(content, np.uint8).reshape(-1, size)


def _folders(name: str, below: str) -> tuple[Path, ...]:
    """Return where a set may lie: as torchvision lays it out, or in a folder of its name."""
    return (data_directory() / below, data_directory() / name)


def _images(images: npt.NDArray[Any], labels: npt.ArrayLike) -> Images:
    """Copy arrays into images and labels, after checking that their lengths agree."""
    if len(images) != len(np.asarray(labels)):
        raise UserError(
            f"its files do not belong together: {len(images)} images but "
            f"{len(np.asarray(labels))} labels; get them again"
        )
    pixels = torch.from_numpy(np.array(images, dtype=np.uint8, order="C"))
    return Images(pixels, torch.from_numpy(np.array(labels, dtype=np.int64)))


def _torchvision_class(name: str) -> Any:
    import torchvision

    return getattr(torchvision.datasets, TORCHVISION_SETS[name])
