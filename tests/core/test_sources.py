"""Sources: what is read from each kind, and the sentences that refuse what cannot be used."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import re
import struct
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.data import download as fetch
from fedkd.data.download import PublicFile, data_directory, find_file, read_members
from fedkd.data.images import Images, as_float, content_hash, resize
from fedkd.data.public import read_idx
from fedkd.data.sources import convert_like, load_source
from fedkd.errors import UserError

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch) -> Path:
    """A data directory of the test's own, and no way out of this machine."""
    folder = tmp_path / "data-dir"
    monkeypatch.setenv("FEDKD_DATA_DIR", str(folder))

    def refuse(url, **options):
        raise OSError(f"no network in tests: {url}")

    monkeypatch.setattr("requests.get", refuse)
    return folder


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def grey(count: int, size: int = 4, classes: int = 2) -> Images:
    return Images(torch.from_numpy(noise(count, 1, size, size)), torch.arange(count) % classes)


def refused(name: str, sentence: str, **options) -> str:
    """Check that a source is refused by a sentence that names it; return the sentence."""
    with pytest.raises(UserError, match=sentence) as refusal:
        load_source(name, **options)
    text = str(refusal.value)
    assert name in text
    assert "\n" not in text
    return text


# Images


def test_taking_keeps_images_and_labels_together():
    images = grey(5, classes=5)
    for indices in ([3, 1], np.array([3, 1]), torch.tensor([3, 1])):
        taken = images.take(indices)
        assert taken.labels.tolist() == [3, 1]
        assert torch.equal(taken.images, images.images[[3, 1]])
    assert len(images.take([])) == 0


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2)),
    ],
)
def test_tensors_of_another_type_or_shape_are_no_images(images, labels):
    with pytest.raises(ValueError, match="must be"):
        Images(images, labels)


def test_the_hash_of_a_transfer_set_covers_type_shape_and_pixels():
    pixels = noise(300, 1, 8, 8)
    expected = hashlib.sha256(b"uint8(300, 1, 8, 8)" + pixels.tobytes()).hexdigest()
    images = torch.from_numpy(pixels)
    assert content_hash(images) == expected
    assert content_hash(images.reshape(300, 1, 4, 16)) != expected
    strided = images.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    assert content_hash(strided) == expected
    empty = hashlib.sha256(b"uint8(0, 1, 8, 8)").hexdigest()
    assert content_hash(images[:0]) == empty
    with pytest.raises(ValueError, match="uint8"):
        content_hash(images.double())


def test_floats_lie_between_zero_and_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    floats = as_float(images)
    assert floats.dtype == torch.float32
    torch.testing.assert_close(floats.flatten(), torch.tensor([0.0, 0.2, 1.0]))


def test_resizing_averages_and_crops_at_the_centre():
    columns = torch.arange(8, dtype=torch.uint8).repeat_interleave(2) * 30
    wide = columns.expand(2, 1, 8, 16)
    small = resize(wide, 4)
    assert small.shape == (2, 1, 4, 4)
    # The central eight columns hold 60 60 90 90 120 120 150 150.
    middle = small[0, 0, 0, 1:3].tolist()
    assert middle == [90, 120]
    assert torch.equal(resize(wide, 8), wide[..., 4:12])
    assert torch.equal(resize(wide.mT, 4), small.mT)
    even = resize(torch.full((300, 3, 5, 7), 201, dtype=torch.uint8), 9)
    assert even.shape == (300, 3, 9, 9)
    assert set(even.flatten().tolist()) == {201}


def test_resizing_is_antialiased_and_rounds():
    stripes = torch.tensor([[200, 0, 0, 200] * 4] * 16, dtype=torch.uint8)[None, None]
    inner = resize(stripes, 4)[0, 0, :, 1:3]
    assert ((inner > 80) & (inner < 120)).all()  # the middle of each fourth alone is 0
    faint = torch.tensor([[0, 3], [0, 0]], dtype=torch.uint8)[None, None]
    assert resize(faint, 1).item() == 1


def test_converting_between_greyscale_and_colour():
    colour = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], dtype=torch.uint8)
    rgb = Images(colour[:, :, None, None].expand(4, 3, 6, 6).contiguous(), torch.arange(4))
    one = convert_like(rgb, channels=1, size=3)
    assert one.images.shape == (4, 1, 3, 3)
    assert one.images[:, 0, 1, 1].tolist() == [76, 150, 29, 9]
    assert one.labels.tolist() == [0, 1, 2, 3]
    three = convert_like(one, channels=3, size=3)
    assert three.images.shape == (4, 3, 3, 3)
    assert all(torch.equal(three.images[:, c], one.images[:, 0]) for c in range(3))
    with pytest.raises(UserError, match="4 channels"):
        convert_like(Images(noise_tensor(2, 4, 3, 3), torch.arange(2)), channels=3, size=3)


def noise_tensor(*shape: int) -> torch.Tensor:
    return torch.from_numpy(noise(*shape))


# Names


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    source = load_source("digits")
    assert source.train.images.shape == (1797, 1, 8, 8)
    assert (source.num_classes, source.in_channels, source.image_size) == (10, 1, 8)
    assert source.test is None
    raw = load_digits()
    assert source.train.labels.tolist() == raw.target.tolist()
    back = source.train.images[:, 0].numpy().astype(float) * 16 / 255
    assert np.abs(back - raw.images).max() <= 0.5 * 16 / 255
    assert (source.train.images.min(), source.train.images.max()) == (0, 255)


def test_digits_can_be_resized():
    source = load_source("digits", image_size=12)
    assert source.image_size == 12
    assert source.train.images.dtype == torch.uint8


def test_an_unknown_name_gets_the_nearest_one():
    refused("digit", "did you mean 'digits'")


# npz


def save(path: Path, **arrays) -> str:
    np.savez_compressed(path, **arrays)
    return f"npz:{path}"


def test_npz_with_three_dimensions_and_a_test_set(tmp_path):
    images, labels = noise(20, 6, 6), np.arange(20, dtype=np.int16) % 3
    name = save(
        tmp_path / "a.npz",
        images=images,
        labels=labels,
        test_images=noise(5, 6, 6),
        test_labels=np.array([0, 1, 2, 3, 3], dtype=">u8"),
        other=np.arange(3),
    )
    source = load_source(name)
    assert torch.equal(source.train.images[:, 0], torch.from_numpy(images))
    assert source.train.labels.tolist() == labels.tolist()
    assert source.test.labels.tolist() == [0, 1, 2, 3, 3]
    assert source.classes == ("0", "1", "2", "3")


def test_npz_in_colour_and_fortran_order_is_resized(tmp_path, monkeypatch):
    images = np.asfortranarray(noise(9, 3, 10, 14))
    save(tmp_path / "b.npz", images=images, labels=np.arange(9) % 2)
    monkeypatch.chdir(tmp_path)
    source = load_source("npz:b.npz", image_size=5)
    assert (source.in_channels, source.image_size) == (3, 5)
    assert torch.equal(source.train.images, resize(torch.from_numpy(images.copy("C")), 5))
    refused("npz:b.npz", r"10 pixels high and 14 wide.*set data\.image_size")


GOOD = {"images": noise(6, 4, 4), "labels": np.arange(6) % 2}


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": GOOD["images"]}, "array labels is missing; the archive has images"),
        ({"labels": GOOD["labels"]}, "array images is missing"),
        ({**GOOD, "test_images": GOOD["images"]}, "array test_labels is missing"),
        ({**GOOD, "images": GOOD["images"] / 255}, r"float64 \[6, 4, 4\]; it must be uint8"),
        ({**GOOD, "images": noise(6, 16)}, r"uint8 \[6, 16\]; it must be"),
        ({**GOOD, "images": noise(6, 28, 28, 5)}, r"images\.transpose\(0, 3, 1, 2\)"),
        ({**GOOD, "images": noise(0, 4, 4), "labels": np.arange(0)}, "not empty"),
        ({**GOOD, "images": noise(6, 0, 4)}, "not empty"),
        ({**GOOD, "labels": GOOD["labels"] / 1}, r"float64 \[6\]; it must be integers"),
        ({**GOOD, "labels": GOOD["labels"] > 0}, r"bool \[6\]; it must be integers"),
        ({**GOOD, "labels": GOOD["labels"][:, None]}, r"int64 \[6, 1\]"),
        ({**GOOD, "labels": np.arange(5)}, "6 examples but labels has 5"),
        ({**GOOD, "labels": np.arange(6) - 1}, "labels run from -1 to 4"),
        ({**GOOD, "labels": np.arange(6) * 9999}, "labels run from 0 to 49995"),
        ({**GOOD, "labels": np.full(6, 2**64 - 1, np.uint64)}, "labels run from 184467"),
        ({**GOOD, "labels": np.zeros(6, int)}, "1 classes"),
        ({**GOOD, "images": np.array([None] * 6)}, "object"),
        (
            {**GOOD, "test_images": noise(2, 3, 4, 4), "test_labels": np.arange(2)},
            "test examples are 3 x 4 x 4 .*training examples are 1 x 4 x 4",
        ),
        ({"arr_0": GOOD["images"]}, "array images is missing; the archive has arr_0"),
        ({}, "the archive has none"),
    ],
)
def test_npz_that_does_not_fit_is_refused(tmp_path, arrays, sentence):
    refused(save(tmp_path / "bad.npz", **arrays), sentence)


def test_npz_with_too_many_or_exactly_many_enough_classes(tmp_path):
    name = save(tmp_path / "many.npz", images=noise(2, 1, 1), labels=np.array([0, 9_999]))
    assert load_source(name).num_classes == 10_000
    refused(save(tmp_path / "m.npz", images=noise(2, 1, 1), labels=np.array([0, 10_000])), "10000")


def header(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    stream = io.BytesIO()
    fields = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, fields)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (header((1 << 36, 28, 28)), "declares .* but holds"),
        (header((6, 4, 4)) + bytes(50), "declares 96 bytes but holds 50"),
        (header((6, 4, 4)), "declares 96 bytes but holds 0"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "header declares 65535 bytes"),
        (b"\x93NUMPY\x01\x00\x04\x00((((", "cannot be read"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "unknown version"),
        (b"", "cannot be read"),
        (b"not an array at all", "cannot be read"),
    ],
)
def test_npz_with_a_lying_or_broken_header_is_refused(tmp_path, images, sentence):
    path = tmp_path / "lie.npz"
    labels = io.BytesIO()
    np.save(labels, np.arange(6) % 2)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", labels.getvalue())
    refused(f"npz:{path}", sentence)


def test_npz_larger_than_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.data.npz.MAX_BYTES", 100)
    monkeypatch.setattr("numpy.load", lambda *a, **k: pytest.fail("decoded"))
    refused(save(tmp_path / "big.npz", **GOOD), "take 144 bytes, more than 100")


def test_npz_never_unpickles(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "bomb.npz"
    np.savez(path, images=GOOD["images"], labels=np.array([Bomb()] * 6, dtype=object))
    refused(f"npz:{path}", "object")
    np.savez(path, **GOOD, extra=np.array([Bomb()], dtype=object))
    assert len(load_source(f"npz:{path}").train) == 6


@pytest.mark.parametrize("kept", [0, 4, 30, 150, -40, -4])
def test_npz_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "short.npz"
    save(path, **GOOD)
    path.write_bytes(path.read_bytes()[:kept])
    refused(f"npz:{path}", "cannot be read as an .npz archive")


def test_npz_with_any_byte_flipped_gives_data_or_a_sentence(tmp_path):
    path = tmp_path / "flipped.npz"
    save(path, **GOOD)
    whole = path.read_bytes()
    refusals = 0
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            load_source(f"npz:{path}")
        except UserError:
            refusals += 1
    assert refusals > len(whole) // 6


def test_npz_that_is_missing_a_folder_or_a_single_array(tmp_path):
    refused(f"npz:{tmp_path}/none.npz", "there is no file")
    refused(f"npz:{tmp_path}", "there is no file")
    np.save(tmp_path / "single.npy", GOOD["images"])
    refused(f"npz:{tmp_path}/single.npy", "not a zip file")
    refused("npz:~nobody-of-this-name/a.npz", "there is no file")


# Folders


def write(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)


def test_folder_in_greyscale_of_several_depths(tmp_path):
    dim = np.array([[0, 257], [128 * 257, 65535]], dtype=np.uint16)
    write(tmp_path / "cat" / "a.png", dim)
    write(tmp_path / "cat" / "b.png", np.array([[0, 1], [128, 255]], dtype=np.uint8))
    write(tmp_path / "dog" / "deeper" / "c.png", np.array([[0, 0], [255, 255]], np.uint8), "1")
    (tmp_path / "dog" / "notes.txt").write_text("no picture: passed over")
    source = load_source(f"folder:{tmp_path}")
    assert source.classes == ("cat", "dog")
    assert source.train.labels.tolist() == [0, 0, 1]
    assert source.train.labels.dtype == torch.int64
    expected = [[0, 1, 128, 255], [0, 1, 128, 255], [0, 0, 255, 255]]
    assert source.train.images.reshape(3, 4).tolist() == expected
    assert source.test is None


def test_folder_is_in_colour_as_soon_as_one_image_is(tmp_path):
    write(tmp_path / "train" / "a" / "1.png", noise(5, 5))
    write(tmp_path / "train" / "b" / "1.png", noise(5, 5, 3))
    write(tmp_path / "test" / "a" / "1.png", noise(5, 5, 3), "P")
    write(tmp_path / "test" / "b" / "1.png", noise(5, 5))
    write(tmp_path / "val" / "c" / "1.png", noise(9, 9))
    source = load_source(f"folder:{tmp_path}")
    assert source.train.images.shape == source.test.images.shape == (2, 3, 5, 5)
    assert source.train.images[0].tolist() == [noise(5, 5).tolist()] * 3
    assert source.train.images[1].tolist() == noise(5, 5, 3).transpose(2, 0, 1).tolist()
    assert source.test.labels.tolist() == [0, 1]


def test_folder_of_differing_sizes_needs_image_size(tmp_path):
    write(tmp_path / "a" / "1.png", noise(5, 7))
    write(tmp_path / "b" / "1.png", noise(9, 6))
    text = refused(f"folder:{tmp_path}", r"differ in size.*set data\.image_size")
    assert "7 x 5 pixels" in text
    assert "6 x 9 pixels" in text
    source = load_source(f"folder:{tmp_path}", image_size=4)
    assert source.train.images.shape == (2, 1, 4, 4)
    assert torch.equal(source.train.images[0], resize(noise_tensor(1, 1, 5, 7), 4)[0])


def test_folder_with_other_classes_in_its_test_set(tmp_path):
    for place in ("train/a", "train/b", "test/a", "test/c"):
        write(tmp_path / place / "1.png", noise(4, 4))
    refused(f"folder:{tmp_path}", "same classes, but differ in b, c")


@pytest.mark.parametrize("present", [["train"], ["train", "val"], ["test"]])
def test_folder_with_one_split_alone_is_not_taken_for_classes(tmp_path, present):
    for split in present:
        write(tmp_path / split / "a" / "1.png", noise(4, 4))
    refused(f"folder:{tmp_path}", "has only the folders")


def test_folder_with_a_class_named_train(tmp_path):
    for place in ("train", "plane"):
        write(tmp_path / place / "1.png", noise(4, 4))
    assert load_source(f"folder:{tmp_path}").classes == ("plane", "train")


def test_folder_without_folders_or_pictures(tmp_path):
    refused(f"folder:{tmp_path}/none", "there is no folder")
    write(tmp_path / "1.png", noise(4, 4))
    refused(f"folder:{tmp_path}", "one folder of images per class")
    (tmp_path / "a").mkdir()
    refused(f"folder:{tmp_path}", "folders without pictures: a;")
    write(tmp_path / "a" / "1.png", noise(4, 4))
    refused(f"folder:{tmp_path}", "1 classes")


def png(width: int, height: int) -> bytes:
    """A PNG that declares a size but has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc(kind + body))

    from zlib import crc32 as crc

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read as an image"),
        (b"these are not pixels", "cannot be read as an image"),
        (png(4, 4), "cannot be read as an image"),
        (png(60_000, 60_000), "cannot be read as an image|more than 50000000 pixels"),
        (png(8_000, 8_000), "8000 x 8000 pixels.*more than 50000000 pixels"),
        (b"GIF89a" + bytes(4), "cannot be read as an image"),
    ],
)
def test_folder_with_a_bad_picture_names_it(tmp_path, content, sentence):
    write(tmp_path / "a" / "1.png", noise(4, 4))
    write(tmp_path / "b" / "1.png", noise(4, 4))
    (tmp_path / "b" / "broken.png").write_bytes(content)
    assert "broken.png" in refused(f"folder:{tmp_path}", sentence)


def test_folder_with_a_picture_cut_short_names_it(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "1.jpg", noise(64, 64))
    broken = tmp_path / "b" / "1.jpg"
    broken.write_bytes(broken.read_bytes()[:-900])
    assert "1.jpg" in refused(f"folder:{tmp_path}", "cannot be read as an image")


def test_folder_larger_than_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.data.decode.MAX_BYTES", 31)
    for name in ("a", "b"):
        write(tmp_path / name / "1.png", noise(4, 4))
    refused(f"folder:{tmp_path}", "2 images take 32 bytes of memory, more than 31")


# Public sets


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    head = bytes([0, 0, kind, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(">i4" if kind == 12 else np.uint8).tobytes()


def write_mnist(folder: Path, *, packed: bool, train: int = 30, test: int = 10) -> None:
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        for what, array in (
            ("images-idx3", noise(count, 28, 28)),
            ("labels-idx1", np.arange(count) % 10),
        ):
            path = folder / f"{part}-{what}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
@pytest.mark.parametrize("packed", [True, False])
def test_mnist_and_its_kin_are_found_in_the_data_directory(data_dir, name, packed):
    torchvisions = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}[name]
    write_mnist(data_dir / (name if packed else f"{torchvisions}/raw"), packed=packed)
    source = load_source(name)
    assert source.train.images.shape == (30, 1, 28, 28)
    assert torch.equal(source.test.images[:, 0], noise_tensor(10, 28, 28))
    assert source.train.labels.tolist() == [*range(10)] * 3
    assert len(source.classes) == 10


@pytest.mark.skipif(
    not DEBIAN_FASHION.is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_fashion_mnist_of_debian():
    source = load_source("fashion-mnist")
    assert source.train.images.shape == (60_000, 1, 28, 28)
    assert source.test.images.shape == (10_000, 1, 28, 28)
    assert source.train.labels.bincount().tolist() == [6_000] * 10
    assert source.test.labels.bincount().tolist() == [1_000] * 10
    assert source.classes[0] == "T-shirt/top"
    # The mean and spread that every tutorial normalises by.
    floats = as_float(source.train.images)
    assert (round(float(floats.mean()), 4), round(float(floats.std()), 4)) == (0.2860, 0.3530)


def test_fashion_mnist_that_is_nowhere_names_the_ways_to_get_it(monkeypatch, tmp_path, data_dir):
    monkeypatch.setattr("fedkd.data.public._DEBIAN", tmp_path / "usr")
    text = refused("fashion-mnist", "train-images-idx3-ubyte.gz is in none of the folders")
    for part in (
        f"{data_dir}/FashionMNIST/raw, {data_dir}/fashion-mnist, {tmp_path}/usr/fashion-mnist",
        "no network in tests: http",
        "apt-get install dataset-fashion-mnist",
        "FEDKD_DATA_DIR",
    ):
        assert part in text


def test_qmnist_reads_the_first_column_of_its_labels(data_dir):
    folder = data_dir / "qmnist"
    folder.mkdir(parents=True)
    labels = np.stack([np.arange(20) % 10, *[np.full(20, 70_000)] * 7], axis=1)
    for part in ("train", "test"):
        images = folder / f"qmnist-{part}-images-idx3-ubyte.gz"
        images.write_bytes(gzip.compress(idx(noise(20, 28, 28))))
        (folder / f"qmnist-{part}-labels-idx2-int").write_bytes(idx(labels, kind=12))
    source = load_source("qmnist")
    assert source.train.labels.tolist() == [*range(10)] * 2
    assert source.test.images.shape == (20, 1, 28, 28)


def packed(content: bytes) -> bytes:
    """Compress without the time, which would give every process's tests other names."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (packed(idx(noise(9, 4, 4)))[:-20], "is damaged"),
        (packed(idx(noise(9, 4, 4)))[:-9] + b"\0" * 9, "is damaged"),
        (b"no gzip", "is damaged"),
        (b"", "not an IDX file"),
        (packed(b""), "not an IDX file of 3"),
        (packed(idx(noise(9))), "not an IDX file of 3"),
        (packed(b"\0\0\x08\x03\0\0"), "not an IDX file of 3"),
        (packed(idx(noise(9, 4, 4), kind=14)), "unknown type 14"),
        (packed(idx(noise(9, 4, 4))[:-1]), "declares 144 bytes of content but has only 143"),
        (packed(idx(noise(9, 4, 4)) + b"x"), "declares 144 bytes of content but has more"),
        (packed(b"\0\0\x08\x03" + b"\xff" * 12), "declares 7922816"),
    ],
)
def test_idx_files_that_are_damaged(tmp_path, content, sentence):
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))} .*{sentence}"):
        read_idx(path, 3)


def test_mnist_files_that_do_not_belong_together(data_dir):
    write_mnist(data_dir / "mnist", packed=True)
    labels = data_dir / "mnist" / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.arange(29) % 10)))
    refused("mnist", "30 images but 29 labels")
    labels.write_bytes(gzip.compress(idx(np.arange(30))))
    refused("mnist", "labels of its training set run from 0 to 29")


def write_cifar(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Write 4 records a file; return the pixels of each."""
    folder.mkdir(parents=True)
    files = ["train.bin", "test.bin"]
    if name == "cifar10":
        files = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    pixels = {}
    for seed, file in enumerate(files):
        pixels[file] = noise(4, 3, 32, 32, seed=seed)
        labels = np.arange(4, dtype=np.uint8)[:, None] + 1
        coarse = [] if name == "cifar10" else [np.full((4, 1), 77, np.uint8)]
        records = np.concatenate([*coarse, labels, pixels[file].reshape(4, -1)], axis=1)
        (folder / file).write_bytes(records.tobytes())
    if name == "cifar100":
        (folder / "fine_label_names.txt").write_text("\n".join(f"name{i}" for i in range(100)))
    return pixels


def test_cifar10_is_read_from_its_binary_version(data_dir):
    pixels = write_cifar(data_dir / "cifar-10-batches-bin", "cifar10")
    source = load_source("cifar10")
    assert source.train.labels.tolist() == [1, 2, 3, 4] * 5
    assert torch.equal(source.train.images[4:8], torch.from_numpy(pixels["data_batch_2.bin"]))
    assert torch.equal(source.test.images, torch.from_numpy(pixels["test_batch.bin"]))
    assert source.classes[3] == "cat"


def test_cifar100_has_fine_labels(data_dir):
    pixels = write_cifar(data_dir / "cifar100" / "cifar-100-binary", "cifar100")
    source = load_source("cifar100")
    assert source.train.labels.tolist() == [1, 2, 3, 4]
    assert torch.equal(source.train.images, torch.from_numpy(pixels["train.bin"]))
    assert source.num_classes == 100


def test_cifar_archives_are_read_without_unpacking(tmp_path, data_dir, monkeypatch):
    write_cifar(tmp_path / "cifar-10-batches-bin", "cifar10")
    data_dir.mkdir()
    archive = data_dir / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    refused("cifar10", "is not the published file: its MD5 is .*delete it")
    monkeypatch.setattr(fetch, "_md5_of", lambda path: "c32a1d4ab5d03f1284b67883e8d87530")
    assert len(load_source("cifar10").train) == 20
    assert [path.name for path in data_dir.iterdir()] == [archive.name]


def test_cifar_of_another_length_is_refused(data_dir):
    write_cifar(data_dir / "cifar-10-batches-bin", "cifar10")
    (data_dir / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(bytes(3074))
    refused("cifar10", "test_batch.bin has 3074 bytes, not a multiple of 3073")


def test_archives_that_are_damaged_incomplete_or_swollen(tmp_path):
    path = tmp_path / "a.tar.gz"

    def pack(**members: bytes) -> bytes:
        with tarfile.open(path, "w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        return path.read_bytes()

    whole = pack(one=noise(5000).tobytes(), two=b"2")
    assert read_members(path, {"two": 1}) == {"two": b"2"}
    for wanted, sentence in (({"three": 9}, "contain three"), ({"link": 9}, "contain link")):
        with pytest.raises(UserError, match=sentence):
            read_members(path, wanted)
    with pytest.raises(UserError, match="one has more than the 4999 bytes"):
        read_members(path, {"one": 4999})
    for content in (b"", b"no archive", whole[:2000], whole[:-8] + bytes(8)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|does not contain"):
            read_members(path, {"two": 1, "three": 1})


def test_svhn_and_usps_are_read_once_their_checksums_match(data_dir, monkeypatch):
    import scipy.io
    import torchvision

    data_dir.mkdir()
    pixels = noise(32, 32, 3, 12)
    for split in ("train", "test"):
        mat = data_dir / f"{split}_32x32.mat"
        scipy.io.savemat(mat, {"X": pixels, "y": np.arange(12)[:, None] % 10 + 1})
        text = data_dir / ("usps.bz2" if split == "train" else "usps.t.bz2")
        row = " ".join(f"{column}:{column / 128 - 1:.4f}" for column in range(1, 257))
        text.write_bytes(bz2.compress(f"1 {row}\n10 {row}\n".encode()))
    refused("svhn", "train_32x32.mat is not the published file")
    refused("usps", "usps.bz2 is not the published file")
    for cls in (torchvision.datasets.SVHN, torchvision.datasets.USPS):
        known = {
            split: [url, name, hashlib.md5((data_dir / name).read_bytes()).hexdigest()]  # noqa: S324
            for split, (url, name, _) in cls.split_list.items()
            if split != "extra"
        }
        monkeypatch.setattr(cls, "split_list", known)
    svhn, usps = load_source("svhn"), load_source("usps")
    assert svhn.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert torch.equal(svhn.test.images, torch.from_numpy(pixels.transpose(3, 2, 0, 1).copy()))
    assert usps.train.images.shape == (2, 1, 16, 16)
    assert usps.train.labels.tolist() == [0, 9]
    assert usps.train.images[0].max() == 255


def test_stl10_pixels_lie_column_by_column(data_dir):
    folder = data_dir / "stl10_binary"
    folder.mkdir(parents=True)
    pixels = noise(3, 3, 96, 96)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([1, 2, 10]))
    source = load_source("stl10")
    assert torch.equal(source.train.images, torch.from_numpy(pixels))
    assert source.test.labels.tolist() == [0, 1, 9]


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "usps", "stl10", "qmnist"])
def test_public_sets_that_are_nowhere(name, data_dir):
    text = refused(name, "downloading it failed .*no network in tests")
    assert str(data_dir) in text
    assert [path for path in data_dir.rglob("*") if path.is_file()] == []


def test_the_data_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDKD_DATA_DIR", "~/sets")
    assert data_directory() == tmp_path / "sets"
    monkeypatch.setenv("FEDKD_DATA_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/my-cache")
    assert data_directory() == Path("/var/my-cache/fedkd/data")
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert data_directory() == tmp_path / ".cache/fedkd/data"


# Downloads


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that knows two files, one of which it breaks off."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in ("/whole", "/broken"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(bytes(1000 if self.path == "/whole" else 400))

        def log_message(self, *args):
            pass

    monkeypatch.undo()  # the real requests.get
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


MD5 = hashlib.md5(bytes(1000)).hexdigest()  # noqa: S324 - as publishers give it


def test_a_download_tries_every_address_and_is_kept(tmp_path, server):
    folder = tmp_path / "sets"
    urls = tuple(f"{server}/{path}" for path in ("missing", "broken", "whole"))
    path = find_file(PublicFile("set.bin", urls, MD5), (folder, tmp_path / "elsewhere"))
    assert path == folder / "set.bin"
    assert path.read_bytes() == bytes(1000)
    assert [entry.name for entry in folder.iterdir()] == ["set.bin"]
    assert path.stat().st_mode & 0o777 == 0o644, "others may read it"
    assert find_file(PublicFile("set.bin", (), MD5), (tmp_path, folder), verify=True) == path


@pytest.mark.parametrize(
    ("path", "md5", "sentence"),
    [
        ("broken", MD5, "IncompleteRead"),
        ("whole", "0" * 32, "MD5 hash of downloaded file .* does not match .* got " + MD5),
        ("missing", MD5, "404"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(tmp_path, server, path, md5, sentence):
    with pytest.raises(UserError, match=sentence):
        find_file(PublicFile("set.bin", (f"{server}/{path}",), md5), (tmp_path / "sets",))
    assert list((tmp_path / "sets").iterdir()) == []


def test_a_download_larger_than_any_data_set_is_broken_off(tmp_path, server, monkeypatch):
    monkeypatch.setattr(fetch, "_MAX_DOWNLOAD", 999)
    with pytest.raises(UserError, match="more than 999 bytes"):
        find_file(PublicFile("set.bin", (f"{server}/whole",), MD5), (tmp_path / "sets",))
    assert list((tmp_path / "sets").iterdir()) == []


# Hugging Face


def write_repository(folder: Path, features: dict, **splits: dict) -> None:
    import datasets

    folder.mkdir(parents=True)
    for split, columns in splits.items():
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A folder that ``datasets`` reads as it reads the Hub: it looks for OWNER/NAME there first."""
    import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_hugging_face_columns_are_found_by_type(hub):
    import datasets

    pictures = [Image.fromarray(noise(6, 6, seed=seed)) for seed in range(4)]
    features = {
        "id": datasets.Value("int64"),
        "coarse": datasets.ClassLabel(names=["x", "y"]),
        "picture": datasets.Image(),
        "fine": datasets.ClassLabel(names=["a", "b", "c"]),
    }
    columns = {
        "id": [7, 8, 9, 9],
        "coarse": [0, 1, 0, 1],
        "picture": pictures,
        "fine": [2, 1, 0, 0],
    }
    write_repository(hub / "owner" / "name", features, train=columns, test=columns)
    source = load_source("hf:owner/name")
    assert source.classes == ("a", "b", "c")
    assert source.train.labels.tolist() == [2, 1, 0, 0]
    assert torch.equal(source.test.images[1, 0], torch.from_numpy(noise(6, 6, seed=1)))
    assert load_source("hf:owner/name", image_size=3).image_size == 3


def test_hugging_face_sets_that_cannot_be_used(hub):
    import datasets

    label, image = datasets.ClassLabel(names=["a", "b"]), datasets.Image()
    pictures = [Image.fromarray(noise(6, 6, seed=seed)) for seed in range(2)]
    good = {"image": pictures, "label": [0, 1]}
    both = {"image": image, "label": label}
    write_repository(hub / "o" / "untrained", both, test=good)
    refused("hf:o/untrained", "no split named train, only test")
    write_repository(hub / "o" / "blind", {"label": label}, train={"label": [0, 1]})
    refused("hf:o/blind", "one column of type Image .* but has label .ClassLabel")
    hidden = {"image": pictures, "label": [-1, -1]}
    write_repository(hub / "o" / "hidden", both, train=good, test=hidden)
    refused("hf:o/hidden", "labels of its test set run from -1 to -1")
    gap = {"image": [pictures[0], None], "label": [0, 1]}
    write_repository(hub / "o" / "gap", both, train=gap)
    refused("hf:o/gap", "image 1 of split train cannot be read as an image .it is missing")


def test_hugging_face_names_and_failures(hub, monkeypatch):
    for bad in ("mnist", "../secret/name", "a/b/c", "owner/", "csv"):
        refused(f"hf:{bad}", "write hf:OWNER/NAME")

    def fail(repository):
        raise ConnectionError(f"Couldn't reach '{repository}'\non the Hub")

    monkeypatch.setattr("datasets.load_dataset", fail)
    refused(
        "hf:owner/name", "could not be loaded .*ConnectionError.*check its name and the network"
    )
