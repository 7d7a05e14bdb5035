"""The source openclipart: which files are taken and drawn, and what is said without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data import openclipart
from fedkd.data.cached import load_cached_source
from fedkd.data.sources import load_source
from fedkd.errors import UserError


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An unpacked package with two pictures of each subject, and what is left out."""
    top = tmp_path / "root" / "usr" / "share" / "openclipart" / "png"
    for label, subject in enumerate(openclipart.SUBJECTS):
        for index in range(2):
            (top / subject / "below").mkdir(parents=True, exist_ok=True)
            ink = np.zeros((8, 4, 4), dtype=np.uint8)
            ink[..., 0], ink[2:6, 1:3, 3] = 10 * label + index, 255
            Image.fromarray(ink).save(top / subject / "below" / f"{index}.png")
    animals = top / "animals"
    (animals / "twice.png").write_bytes((animals / "below" / "0.png").read_bytes())
    Image.new("RGB", (1501, 1000)).save(animals / "wide.png")
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(animals / "heavy.png")
    return tmp_path / "root"


def test_small_pictures_of_twelve_subjects_are_squares_on_white(package):
    source = load_source(f"openclipart:{package}")
    assert source.classes == openclipart.SUBJECTS
    assert source.train.shape == (24, 3, 96, 96)
    assert source.train.labels.bincount().tolist() == [2] * 12
    first = source.train.images[0]
    assert (first[:, :, :20] == 255).all(), "the sides of a narrow picture are white"
    assert first[:, 48, 48].tolist() == [0, 0, 0]
    small = load_source(f"openclipart:{package}", image_size=32)
    assert small.train.shape == (24, 3, 32, 32)


def test_of_many_pictures_the_same_ones_are_drawn(package, monkeypatch):
    monkeypatch.setattr(openclipart, "MAX_FILES", 1)
    drawn = {load_source(f"openclipart:{package}").train.digest for _ in range(2)}
    assert len(drawn) == 1
    assert len(load_source(f"openclipart:{package}").train) == 12


def test_it_is_decoded_once(package, tmp_path, monkeypatch):
    first = load_cached_source(f"openclipart:{package}", image_size=None, cache=tmp_path)
    monkeypatch.setattr(openclipart, "read_pictures", None)
    again = load_cached_source(f"openclipart:{package}", image_size=None, cache=tmp_path)
    assert again.train.digest == first.train.digest
    monkeypatch.setattr(openclipart, "_INSTALLED", (openclipart.find_openclipart(package),))
    with pytest.raises(TypeError):  # another name is another entry
        load_cached_source("openclipart", image_size=None, cache=tmp_path)


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(openclipart, "_INSTALLED", (tmp_path / "absent",))
    for name in ("openclipart", f"openclipart:{tmp_path}"):
        with pytest.raises(UserError, match="apt-get install openclipart-png"):
            load_cached_source(name, image_size=None, cache=tmp_path)
