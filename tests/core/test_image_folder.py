"""Folders of pictures: what is a class, what is a part, and that nothing vanishes unsaid."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.source import Source
from fedkd.data.sources import load_source
from fedkd.errors import UserError


def picture(path: Path, seed: int = 0, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def tree(root: Path, *classes: str, ending: str = "png") -> Path:
    for label, name in enumerate(classes):
        for index in range(3):
            picture(root / name / f"{index}.{ending}", 10 * label + index)
    return root


def load(root: Path) -> Source:
    return load_source(f"folder:{root}")


def refuse(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(root)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "name",
    [".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "__pycache__", ".thumb"],
)
def test_what_systems_and_programs_leave_is_no_class_and_no_image(tmp_path: Path, name: str):
    tree(tmp_path, "a", "b")
    expected = load(tmp_path)
    picture(tmp_path / name / "0-copy.png", 99)
    picture(tmp_path / "a" / name / "0-copy.png", 99)
    picture(tmp_path / "a" / "._0.png", 99, format="PNG")
    for place in (tmp_path, tmp_path / "b"):
        for file in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (place / file).write_bytes(b"no picture")
    found = load(tmp_path)
    assert found.classes == ("a", "b")
    assert found.train.images.equal(expected.train.images)
    assert found.train.labels.equal(expected.train.labels)
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("train-images", "test-images"),
        ("seg_train", "seg_test"),
        ("train2017", "test2017"),
    ],
)
def test_parts_are_known_in_any_spelling(tmp_path: Path, train: str, test: str):
    tree(tmp_path / train, "a", "b")
    tree(tmp_path / test, "a", "b")
    (tmp_path / "README.md").write_text("not a part")
    source = load(tmp_path)
    assert source.classes == ("a", "b")
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (6, 6)
    assert source.warnings == ()


@pytest.mark.parametrize("other", ["val", "validation", "Valid", "dev", "unlabelled"])
def test_other_parts_are_left_out_with_a_word(tmp_path: Path, other: str):
    for part in ("train", "Test", other):
        tree(tmp_path / part, "a", "b")
    (warning,) = load(tmp_path).warnings
    assert f"{other} beside train and Test" in warning


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (["Train"], "only the folders Train: a test set needs both"),
        (["train", "validation"], "rename validation to test"),
        (["TEST", "val"], "only the folders TEST, val"),
        (["train", "Training", "test"], "more than one folder for the train part: Training, train"),
        (["train", "cat"], "the folders cat, train: a test set needs both"),
    ],
)
def test_parts_that_are_not_whole_are_never_classes(tmp_path: Path, folders, sentence: str):
    for folder in folders:
        tree(tmp_path / folder, "a", "b")
    assert sentence in refuse(tmp_path)


def test_parts_without_class_folders_are_never_classes(tmp_path: Path):
    tree(tmp_path, "train", "test")
    assert "needs one folder of images per class" in refuse(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "dev", "val"])
def test_a_folder_of_pictures_beside_others_is_a_class_by_any_name(tmp_path: Path, name: str):
    tree(tmp_path, name, "plane")
    assert set(load(tmp_path).classes) == {name, "plane"}


@pytest.mark.parametrize(
    "ending", ["gif", "jfif", "JPG", "Png", "webp", "bmp", "tif", "TIFF", "jpe", "pgm", "jp2"]
)
def test_pictures_of_every_usual_ending_are_read(tmp_path: Path, ending: str):
    kind = {"jfif": "JPEG"}.get(ending)
    tree(tmp_path, "a", "b")
    picture(tmp_path / "a" / f"more.{ending}", 5, **({"format": kind} if kind else {}))
    source = load(tmp_path)
    assert source.train.labels.tolist() == [0] * 4 + [1] * 3
    assert source.in_channels == (3 if ending == "webp" else 1)
    assert source.warnings == ()


def test_files_that_are_not_read_are_counted_by_ending(tmp_path: Path):
    tree(tmp_path, "a", "b")
    for name in ("a/1.heic", "a/2.HEIC", "b/1.heic", "b/notes.txt", "b/scan"):
        (tmp_path / name).write_bytes(b"something")
    picture(tmp_path / "cover.jpg")
    files, beside = load(tmp_path).warnings
    assert files == "files that are not read as pictures: 3 .heic, 1 .txt, 1 without an ending"
    assert beside == "pictures that lie beside the class folders and are left out: 1"


def test_classes_without_pictures_are_all_named(tmp_path: Path):
    tree(tmp_path, "a", "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "1.heic").write_bytes(b"something")
    assert "folders without pictures: c, d (1 .heic are not read)" in refuse(tmp_path)


def test_damaged_files_are_all_named(tmp_path: Path):
    tree(tmp_path, "a", "b")
    (tmp_path / "a" / "empty.png").write_bytes(b"")
    (tmp_path / "a" / "page.jpg").write_text("<html>404</html>")
    cut = tmp_path / "b" / "1.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (tmp_path / "b" / "link.png").symlink_to("/nowhere.png")
    text = refuse(tmp_path)
    for name in ("empty.png", "page.jpg", "b/1.png", "link.png"):
        assert f"{name} cannot be read as an image" in text
    assert text.endswith("; replace them or remove them")
    for index in range(4):
        (tmp_path / "b" / f"x{index}.png").write_bytes(b"x")
    assert "; and 3 more; replace them" in refuse(tmp_path)


def test_damage_in_the_pixels_alone_is_found_in_both_parts(tmp_path: Path):
    for part in ("train", "test"):
        tree(tmp_path / part, "a", "b")
        cut = tmp_path / part / "a" / "1.png"
        cut.write_bytes(cut.read_bytes()[:60])
    text = refuse(tmp_path)
    assert "train/a/1.png" in text
    assert "test/a/1.png" in text


def test_order_and_labels_are_those_of_torchvision(tmp_path: Path):
    from torchvision.datasets import ImageFolder

    tree(tmp_path, "b", "B", "a-c", "a")
    tree(tmp_path / "a", "x", "x y", "X")
    expected = ImageFolder(str(tmp_path))
    source = load(tmp_path)
    assert source.classes == tuple(expected.classes)
    assert source.train.labels.tolist() == expected.targets
    for index, (image, _) in enumerate(expected):
        assert np.array_equal(np.array(image)[..., 0], source.train.images[index, 0])


def test_a_link_to_a_folder_above_ends(tmp_path: Path):
    tree(tmp_path, "a", "b")
    (tmp_path / "a" / "up").symlink_to(tmp_path / "a")
    assert len(load(tmp_path).train) == 6


@pytest.mark.parametrize("target", [".", "b", "b/deep"], ids=["the root", "a class", "in one"])
@pytest.mark.parametrize("place", ["c", "a/c"])
def test_a_link_that_puts_pictures_into_two_classes_is_refused(
    tmp_path: Path, place: str, target: str
):
    tree(tmp_path, "a", "b", "b/deep")
    (tmp_path / place).symlink_to(tmp_path / target)
    message = refuse(tmp_path)
    assert "would be of two classes; remove the link" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_refused(tmp_path: Path):
    tree(tmp_path, "a", "b")
    (tmp_path / "a" / "deep").mkdir(mode=0)
    assert "Permission denied" in refuse(tmp_path)


def test_a_named_pipe_is_not_opened(tmp_path: Path):
    """To open it would wait for a writer for ever."""
    tree(tmp_path, "a", "b")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    source = load(tmp_path)
    assert len(source.train) == 6
    assert "files that are not read as pictures: 1 .png" in source.warnings


@pytest.mark.parametrize("name", [b"\xff\xfe", b"c\nd", b"\x1b[31m"])
def test_class_names_that_no_report_can_show_are_refused(tmp_path: Path, name: bytes):
    tree(tmp_path, "a", "b")
    picture(tmp_path / os.fsdecode(name) / "0.png")
    assert "are not printable text" in refuse(tmp_path)
