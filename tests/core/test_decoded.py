"""Data sources of the user's own: decoded once, mapped into memory, split by views."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedkd.data import folder, images, mapped, picture_reader
from fedkd.data.cached import load_cached_source
from fedkd.data.images import Images, content_hash
from fedkd.data.sources import load_source
from fedkd.errors import UserError
from fedkd.federation.split import load_split
from fedkd.models.build import Shape, build_model
from fedkd.models.state import state_hash
from fedkd.training import batches
from fedkd.training.compute import Compute
from fedkd.training.evaluate import evaluate, predict
from fedkd.training.loop import train_supervised
from fedkd.training.optimizer import OptimizerSettings
from fedkd.util.progress import SlowProgress
from fedkd.util.seeding import torch_generator


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 40 pictures of two classes."""
    for index in range(40):
        picture(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", index)
    return tmp_path / "photos"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pictures that were opened, one entry each time."""
    paths: list[str] = []
    plain = folder._open_file
    monkeypatch.setattr(folder, "_open_file", lambda path: paths.append(path) or plain(path))
    return paths


def load(photos: Path, cache: Path, size: int = 6):
    return load_cached_source(f"folder:{photos}", image_size=size, cache=cache)


def test_pictures_are_opened_once_and_give_the_same_images(photos, tmp_path, opened):
    plain = load_source(f"folder:{photos}", image_size=6)
    opened.clear()
    first = load(photos, tmp_path / "cache")
    assert len(set(opened)) == 40
    opened.clear()
    again = load(photos, tmp_path / "cache")
    assert opened == []
    for source in (first, again):
        assert torch.equal(source.train.images, plain.train.images)
        assert torch.equal(source.train.labels, plain.train.labels)
        assert (source.name, source.classes, source.warnings) == (
            plain.name,
            plain.classes,
            plain.warnings,
        )
    load(photos, tmp_path / "cache", size=5)
    assert len(set(opened)) == 40, "another size is another copy"


def test_notes_and_test_sets_are_in_the_copy(photos, tmp_path):
    for part in ("train", "test"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / part).symlink_to(photos)
    (photos / "a" / "notes.txt").write_text("not a picture")
    plain = load_source(f"folder:{tmp_path / 'parts'}", image_size=6)
    for _ in range(2):
        found = load(tmp_path / "parts", tmp_path / "cache")
        assert found.warnings == plain.warnings != ()
        assert found.test is not None
        assert plain.test is not None
        assert torch.equal(found.test.images, plain.test.images)


@pytest.mark.parametrize("change", ["in place", "added", "removed", "new class"])
def test_a_change_of_the_folder_is_seen(photos, tmp_path, change):
    before = load(photos, tmp_path / "cache").train
    if change == "in place":
        picture(photos / "a" / "0.png", 99)
    elif change == "added":
        picture(photos / "a" / "99.png", 99)
    elif change == "removed":
        (photos / "a" / "0.png").unlink()
    else:
        (photos / "empty").mkdir()
        with pytest.raises(UserError, match="folders without pictures: empty"):
            load(photos, tmp_path / "cache")
        return
    after = load(photos, tmp_path / "cache").train
    plain = load_source(f"folder:{photos}", image_size=6).train
    assert torch.equal(after.images, plain.images)
    assert before.digest != after.digest == plain.digest


def test_what_changes_while_it_is_read_is_not_kept(photos, tmp_path, monkeypatch):
    plain = folder._open_file

    def touch(path):
        (photos / "a" / "late.txt").write_text(path)
        return plain(path)

    monkeypatch.setattr(folder, "_open_file", touch)
    assert len(load(photos, tmp_path / "cache").train) == 40
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def test_the_copy_is_for_the_user_alone(photos, tmp_path):
    load(photos, tmp_path / "cache")
    (entry,) = (tmp_path / "cache" / "sources").iterdir()
    assert stat.S_IMODE(entry.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in entry.iterdir()} == {0o600}


def test_a_copy_that_was_cut_short_is_made_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr("fedkd.data.cached._CHECKED_BYTES", 0)
    expected = load(photos, tmp_path / "cache").train.digest
    (entry,) = (tmp_path / "cache" / "sources").iterdir()
    with (entry / "images.npy").open("rb+") as file:
        file.truncate(1000)
    assert load(photos, tmp_path / "cache").train.digest == expected
    (entry / "labels.npy").unlink()
    assert load(photos, tmp_path / "cache").train.digest == expected


def test_the_oldest_copies_make_room(photos, tmp_path, monkeypatch, opened):
    sources = tmp_path / "cache" / "sources"
    monkeypatch.setenv("FEDKD_CACHE_GB", "1e-5")
    for hours, size in ((2, 6), (1, 5)):
        known = set(sources.iterdir()) if sources.exists() else set()
        load(photos, tmp_path / "cache", size)
        (entry,) = set(sources.iterdir()) - known
        os.utime(entry, (time.time() - 3600 * hours,) * 2)
    load(photos, tmp_path / "cache", 6)  # so the other one was not used for longest
    load(photos, tmp_path / "cache", 4)
    opened.clear()
    load(photos, tmp_path / "cache", 6)
    load(photos, tmp_path / "cache", 4)
    assert opened == []
    assert len(list(sources.iterdir())) == 2
    monkeypatch.setenv("FEDKD_CACHE_GB", "0")
    assert len(load(photos, tmp_path / "other").train) == 40
    assert not (tmp_path / "other").exists()
    for wrong in ("much", "-1", "nan"):
        monkeypatch.setenv("FEDKD_CACHE_GB", wrong)
        with pytest.raises(UserError, match=r"FEDKD_CACHE_GB: .* is not a valid number"):
            load(photos, tmp_path / "cache")


def test_a_full_disk_costs_the_copy_alone(photos, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mapped.os, "posix_fallocate", full)
    assert len(load(photos, tmp_path / "cache").train) == 40
    assert "No space left on device" in caplog.text
    assert list((tmp_path / "cache" / "sources").iterdir()) == []


def test_a_function_is_called_again_unless_it_says_cacheable(tmp_path, monkeypatch):
    (tmp_path / "spots_source.py").write_text(
        "import numpy as np\n"
        "CALLS = []\n"
        "def spots(shade=9):\n"
        "    CALLS.append(shade)\n"
        "    images = np.full((6, 4, 4), shade, np.uint8)\n"
        "    return {'images': images, 'labels': np.arange(6) % 2}\n"
        "def lasting(shade=9):\n"
        "    return spots(shade)\n"
        "lasting.cacheable = True\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import spots_source

    for name, calls in (("spots", 2), ("lasting", 1)):
        spots_source.CALLS.clear()
        for _ in range(2):
            found = load_cached_source(
                f"spots_source:{name}", image_size=None, cache=tmp_path, options={"shade": 7}
            )
            assert int(found.train.images.max()) == 7
        assert len(spots_source.CALLS) == calls
    load_cached_source(
        "spots_source:lasting", image_size=None, cache=tmp_path, options={"shade": 8}
    )
    assert spots_source.CALLS == [7, 8]


def test_many_threads_decode_as_one(photos, monkeypatch):
    monkeypatch.setattr(picture_reader, "_OPENED_AT_ONCE", 3)
    digests = set()
    for cores in (1, 5):
        monkeypatch.setattr(picture_reader, "available_cores", lambda cores=cores: cores)
        digests.add(load_source(f"folder:{photos}", image_size=6).train.digest)
    assert len(digests) == 1
    for name in ("3", "21", "39"):
        (photos / "b" / f"{name}.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"b/21.png .*b/3.png .*b/39.png .*replace them"):
        load_source(f"folder:{photos}", image_size=6)


def test_progress_shows_after_two_seconds(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 2.5, 2.6, 40.0])
    monkeypatch.setattr("fedkd.util.progress.monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with SlowProgress("decoding pictures", 4000) as progress:
        progress.add(1000)
        assert capsys.readouterr().err == ""
        progress.add(500)
        assert capsys.readouterr().err == "fedkd: decoding pictures: 1,500 of 4,000\n"


# Views


@pytest.fixture
def views(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function from which on a part of a set of images is a view."""
    return lambda: monkeypatch.setattr(images, "COPIED_BYTES", 0)


def some_images(count: int = 50) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 3)


def test_a_view_of_a_view_holds_the_images_of_a_copy(views):
    whole, rows = some_images(), torch.tensor([9, 3, 3, 40])
    copied = whole.take(rows).take([2, 0, 3])
    views()
    view = whole.take(rows).take([2, 0, 3])
    assert view.stored.data_ptr() == whole.stored.data_ptr()
    assert torch.equal(view.images, copied.images)
    assert torch.equal(view.labels, copied.labels)
    assert (view.digest, view.shape, len(view)) == (copied.digest, copied.shape, 3)
    assert content_hash(view) == content_hash(copied.images)
    assert torch.equal(torch.cat(list(view.blocks(2))), copied.images)
    assert torch.equal(view.pick(torch.tensor([1])), copied.images[1:2])


@pytest.mark.parametrize("arch", ["mlp", "resnet8"])
def test_training_on_a_view_in_small_parts_gives_the_same_bits(views, monkeypatch, arch):
    rows = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:37]
    results = []
    for part in (some_images().take(rows), None):
        if part is None:
            views()
            monkeypatch.setattr(batches, "_FLOAT_BYTES", 20 * 64 * 4)
            part = some_images().take(rows)
            assert part.rows is not None
        model = build_model(arch, Shape(3, 1, 8), seed=0)
        optimizer = OptimizerSettings(2, 8, 0.05, 0.9)
        generator = torch_generator(0, "pre-training", "silo-0")
        train_supervised(model, part, optimizer=optimizer, generator=generator, compute=Compute())
        logits = predict(model, part, compute=Compute(), batch_size=16)
        results.append(
            (state_hash(model.state_dict()), logits, evaluate(model, part, compute=Compute()))
        )
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_silos_and_test_set_of_a_large_source_are_views(photos, tmp_path, make_study, views):
    changes = {
        "data": {"source": f"folder:{photos}", "image_size": 6, "transfer": {"size": 4}},
        "partition": {"scheme": "iid", "silos": 3, "min_size": 2},
    }
    copied = load_split(make_study(changes), 0, tmp_path)
    views()
    split = load_split(make_study(changes), 0, tmp_path)
    places = {part.stored.data_ptr() for part in (split.test, split.validation, *split.silos)}
    assert len(places) == 1
    for view, copy in zip(split.silos, copied.silos, strict=True):
        assert view.digest == copy.digest
