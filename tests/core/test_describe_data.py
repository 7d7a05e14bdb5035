"""What fedkd validate says of a study's data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedkd.federation.describe_data import describe_data
from fedkd.federation.federation import Federation


def test_sets_silos_and_values_are_described(tmp_path: Path, make_study):
    images = np.zeros((100, 8, 8), dtype=np.uint8)
    images[:, :2], images[:, 2:4] = 100, 200  # a quarter each; the rest is black but for a pixel
    images[np.arange(100), 7, 7] = np.arange(100)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(100) % 4)
    study = make_study(
        {
            "data": {"source": f"npz:{tmp_path / 'mine.npz'}", "transfer": {"size": 10}},
            "partition": {"scheme": "iid", "silos": 2, "min_size": 2},
        }
    )
    lines = list(describe_data(Federation.load(study, 0, tmp_path / "cache")))
    assert lines[0] == ("4 classes: 0, 1, 2, 3; images of 1 x 8 x 8 (channels, height, width)")
    assert [line.partition(" images")[0] for line in lines[1:6]] == [
        *("test: 20", "validation: 8", "transfer: 10"),
        *("silo-0: 31", "silo-1: 31"),
    ]
    assert lines[3] == "transfer: 10 images without labels"
    counts = [int(part.split()[-1]) for part in lines[4].partition("images: ")[2].split(", ")]
    assert sum(counts) == 31
    assert "quantiles 0 % 0, 5 % 0, 25 % 0, " in lines[6]
    assert lines[6].endswith(", 75 % 100, 95 % 200, 100 % 200")
    assert 74 < float(lines[6].partition("mean ")[2].partition(";")[0]) < 77
