"""NumPy archives: which axis counts channels, labels that leave classes empty, hostile members."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedkd.data.source import Source
from fedkd.data.sources import load_source
from fedkd.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
LABELS = np.arange(12) % 3


def write(path: Path, **arrays: object) -> Path:
    np.savez(path, **arrays)
    return path


def load(path: Path, **options: int) -> Source:
    return load_source(f"npz:{path}", **options)


def refuse(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize(
    "shape",
    [(3, 16, 16), (1, 4, 4), (4, 8, 8), (3, 10, 14), (16, 16, 16), (13, 20, 20), (2, 6, 6)],
)
def test_channels_come_first(tmp_path: Path, shape: tuple[int, ...]):
    images = noise(12, *shape)
    source = load(write(tmp_path / "a.npz", images=images, labels=LABELS), image_size=shape[2])
    assert source.in_channels == shape[0]
    if shape[1] == shape[2]:
        assert np.array_equal(source.train.images, images)


@pytest.mark.parametrize(
    "shape", [(16, 16, 3), (28, 28, 1), (4, 4, 3), (8, 8, 4), (3, 3, 1), (16, 20, 3), (5, 9, 3)]
)
def test_one_three_or_four_channels_may_come_last(tmp_path: Path, shape: tuple[int, ...]):
    images = noise(12, *shape)
    path = write(tmp_path / "a.npz", images=images, labels=LABELS)
    source = load(path, image_size=min(shape[:2]))
    assert source.in_channels == shape[2]
    if shape[0] == shape[1]:
        assert np.array_equal(source.train.images, images.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 4, 4), (3, 20, 3), (1, 28, 1), (1, 9, 4)])
def test_channels_that_could_be_first_or_last_are_refused(tmp_path: Path, shape):
    text = refuse(write(tmp_path / "a.npz", images=noise(12, *shape), labels=LABELS))
    assert "it is not clear which of its dimensions are channels" in text
    assert "images.transpose(0, 3, 1, 2)" in text


@pytest.mark.parametrize("shape", [(16, 16, 2), (28, 28, 5), (16, 16, 13), (64, 64, 30)])
def test_many_channels_that_come_last_are_refused_with_the_remedy(tmp_path: Path, shape):
    images = noise(12, *shape)
    assert "transpose(0, 3, 1, 2)" in refuse(
        write(tmp_path / "a.npz", images=images, labels=LABELS)
    )
    if shape[2] <= 16:
        mended = write(tmp_path / "b.npz", images=images.transpose(0, 3, 1, 2), labels=LABELS)
        assert load(mended).in_channels == shape[2]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (LABELS + 1, "of 4 classes, 1 have no example (labels 0)"),
        (LABELS * 5, "of 11 classes, 8 have no example (labels 1, 2, 3, 4, 6 and 3 more)"),
        (LABELS + 7, "of 10 classes, 7 have no example (labels 0, 1, 2, 3, 4 and 2 more)"),
    ],
)
def test_classes_without_images_are_told_of_with_the_remedy(tmp_path: Path, labels, sentence):
    (warning,) = load(write(tmp_path / "a.npz", images=PIXELS, labels=labels)).warnings
    assert sentence in warning
    remedy = warning.rpartition("save ")[2].removesuffix(" instead")
    mended = eval(remedy, {"labels": labels, "numpy": np})  # noqa: S307 -- our own sentence
    assert mended.tolist() == LABELS.tolist()
    assert load(write(tmp_path / "b.npz", images=PIXELS, labels=mended)).warnings == ()


def test_a_class_of_the_test_set_alone_is_not_empty(tmp_path: Path):
    path = write(
        tmp_path / "a.npz", images=PIXELS, labels=LABELS, test_images=PIXELS[:1], test_labels=[3]
    )
    source = load(path)
    assert source.classes == ("0", "1", "2", "3")
    assert source.warnings == ()


REMEDIES = {
    "column": (LABELS[:, None], LABELS),
    "one-hot": (np.eye(3, dtype=int)[LABELS], LABELS),
    "floats": (LABELS.astype(float), LABELS),
    "text": (np.array(["a", "b", "c"])[LABELS], LABELS),
    "bool": (LABELS > 0, LABELS > 0),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_labels_of_another_form_are_refused_with_the_remedy(tmp_path: Path, name: str):
    labels, wanted = REMEDIES[name]
    text = refuse(write(tmp_path / "a.npz", images=PIXELS, labels=labels))
    assert "it must be integers [N]" in text
    remedy = text.rpartition("save ")[2].partition(" for text")[0].partition(" if they")[0]
    mended = eval(remedy, {"labels": labels, "numpy": np})  # noqa: S307 -- our own sentence
    assert mended.tolist() == wanted.astype(int).tolist()
    load(write(tmp_path / "b.npz", images=PIXELS, labels=mended))


def test_nan_and_times_as_labels_are_refused(tmp_path: Path):
    labels = np.where(LABELS > 0, 1.0, np.nan)
    assert "it must be integers" in refuse(write(tmp_path / "a.npz", images=PIXELS, labels=labels))
    times = LABELS.astype("timedelta64[s]")
    assert "it must be integers" in refuse(write(tmp_path / "a.npz", images=PIXELS, labels=times))


@pytest.mark.parametrize(
    ("images", "remedy"),
    [
        (PIXELS / 255, "(images * 255).round().astype('uint8')"),
        (PIXELS > 99, "images.astype('uint8') * 255"),
        (PIXELS.astype(np.int64), "images.astype('uint8') if they run from 0 to 255"),
        (PIXELS.reshape(12, -1), "images.reshape(N, H, W)"),
        (PIXELS.astype(object), "numpy.stack(images)"),
    ],
)
def test_images_of_another_form_are_refused_with_the_remedy(tmp_path: Path, images, remedy: str):
    assert remedy in refuse(write(tmp_path / "a.npz", images=images, labels=LABELS))


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("x_train", "y_train"), "numpy.savez(path, images=a['x_train'], labels=a['y_train'])"),
        (("train_images", "train_labels"), "images=a['train_images'], labels=a['train_labels']"),
        (("X", "y"), "images=a['X'], labels=a['y']"),
    ],
)
def test_names_of_other_tools_are_refused_with_the_remedy(tmp_path: Path, names, remedy: str):
    arrays = dict(zip(names, (PIXELS, LABELS), strict=True))
    assert remedy in refuse(write(tmp_path / "a.npz", **arrays))


def npy(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def pack(path: Path, *members: tuple[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


GOOD = (("images.npy", npy(PIXELS)), ("labels.npy", npy(LABELS)))


@pytest.mark.parametrize(
    "content", [b"raw", npy(PIXELS / 255), npy(np.full(12, np.nan)), npy(LABELS[:, None]), b""]
)
def test_a_raw_member_beside_an_array_is_never_read(tmp_path: Path, content: bytes):
    path = pack(tmp_path / "a.npz", ("images", content), ("labels", content), *GOOD)
    source = load(path)
    assert np.array_equal(source.train.images[:, 0], PIXELS)
    assert source.train.labels.tolist() == LABELS.tolist()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_that_are_raw_or_twice_there_are_refused(tmp_path: Path):
    path = pack(tmp_path / "a.npz", ("images", b"raw"), ("labels", b"raw"))
    assert "the array images is missing; the archive has images, labels" in refuse(path)
    path = pack(tmp_path / "a.npz", *GOOD, ("labels.npy", npy(LABELS / 1)))
    assert "the array labels stands in the archive twice" in refuse(path)


def test_a_header_of_gigabytes_is_refused_before_it_is_read(tmp_path: Path):
    for version, width in ((b"\1\0", 2), (b"\2\0", 4)):
        content = b"\x93NUMPY" + version + b"\xff" * width + b" " * 100
        path = pack(tmp_path / "a.npz", ("images.npy", content), GOOD[1])
        assert "the array images is damaged: its header declares" in refuse(path)


def test_a_shape_below_zero_is_refused(tmp_path: Path):
    stream = io.BytesIO()
    fields = {"descr": "|u1", "fortran_order": False, "shape": (-1, 4, 4)}
    np.lib.format.write_array_header_1_0(stream, fields)
    path = pack(tmp_path / "a.npz", ("images.npy", stream.getvalue()), GOOD[1])
    assert "the array images is damaged: its shape is [-1, 4, 4]" in refuse(path)
