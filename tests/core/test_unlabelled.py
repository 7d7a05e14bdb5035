"""Transfer sets without labels: a flat folder of pictures, an archive of images alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedkd.data.cached import load_cached_source
from fedkd.errors import UserError
from fedkd.federation.split import load_split


@pytest.fixture
def sources(tmp_path: Path) -> tuple[str, str]:
    """A folder and an archive with the same thirty images, and no labels."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    (tmp_path / "flat").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "flat" / f"{index:02}.png")
    np.savez(tmp_path / "images.npz", images=pixels)
    return f"folder:{tmp_path / 'flat'}", f"npz:{tmp_path / 'images.npz'}"


def test_a_transfer_set_needs_no_labels(sources, make_study, tmp_path):
    digests = set()
    for source in sources:
        study = make_study({"data/transfer": {"source": source, "size": 20}})
        for _ in range(2):  # the second time from the cache
            transfer = load_split(study, 0, tmp_path / "cache").transfer
            assert transfer is not None
            assert set(transfer.labels.tolist()) == {-1}
            digests.add(transfer.digest)
    assert len(digests) == 1


def test_labels_that_are_needed_are_missed(sources, make_study, tmp_path):
    for source, sentence in zip(
        sources,
        ("needs one folder of images per class", "the array labels is missing"),
        strict=True,
    ):
        load_cached_source(source, image_size=None, cache=tmp_path, unlabelled=True)
        with pytest.raises(UserError, match=sentence):
            load_split(make_study({"data/source": source}), 0, tmp_path)
        labelled = {"source": source, "size": 20, "labelled": True}
        with pytest.raises(UserError, match=sentence):
            load_split(make_study({"data/transfer": labelled}), 0, tmp_path)
