"""Features by the content of images: what is computed, and what memory and disk take."""

from __future__ import annotations

import os
import shutil
import time

import pytest
import torch
from torch import Tensor

from fedkd.models import feature_store
from fedkd.models.feature_store import FeatureStore


class Network:
    """Features that are known, and which images they were computed for."""

    shape = (3,)

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += images[:, 0, 0, 0].tolist()
        return images[:, 0, 0, :1].float() * torch.tensor([1.0, 2.0, 4.0])


def images(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)


def make(folder, key="a"):
    return FeatureStore(key, "cpu", "fp32", folder)


def get(store: FeatureStore, network: Network, *values: int) -> None:
    expected = torch.tensor(values)[:, None] * torch.tensor([1.0, 2.0, 4.0])
    assert torch.equal(store.get(images(*values), network.shape, network), expected)


@pytest.fixture(autouse=True)
def _no_other_features(monkeypatch):
    forget(monkeypatch)


def forget(monkeypatch, size=1 << 20):
    fresh = feature_store.LRUCache(size, getsizeof=lambda rows: rows.nbytes)
    monkeypatch.setattr(feature_store, "_in_memory", fresh)
    return fresh


def test_each_content_is_computed_once_in_all_processes(tmp_path, monkeypatch) -> None:
    network, store = Network(), make(tmp_path)
    get(store, network, 5, 7, 5)
    get(store, network, 7, 9, 5, 9)
    assert network.seen == [5, 7, 9]
    forget(monkeypatch)
    get(make(tmp_path), network, 9, 5, 7)
    assert network.seen == [5, 7, 9]
    get(make(tmp_path, key="b"), network, 9)
    assert network.seen == [5, 7, 9, 9]


def test_memory_is_bounded_and_what_it_lacks_is_read(tmp_path, monkeypatch) -> None:
    memory = forget(monkeypatch, size=24)  # features of two images
    network, store = Network(), make(tmp_path)
    for value in range(6):
        get(store, network, value)
        assert memory.currsize <= 24
    get(store, network, *range(6))
    assert network.seen == [*range(6)]
    assert memory.currsize <= 24


def test_without_disk_what_memory_lacks_is_computed_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FEDKD_CACHE_GB", "0")
    forget(monkeypatch, size=24)
    network, store = Network(), make(tmp_path)
    for value in (1, 2, 3, 3, 1):
        get(store, network, value)
    assert network.seen == [1, 2, 3, 1]
    assert list(tmp_path.iterdir()) == []


def test_entries_larger_than_the_memory_are_used(tmp_path, monkeypatch) -> None:
    forget(monkeypatch, size=20)
    network, store = Network(), make(tmp_path)
    for _ in range(2):
        get(store, network, 1, 2, 3)
    assert network.seen == [1, 2, 3]


def test_a_removed_entry_is_computed_again(tmp_path, monkeypatch) -> None:
    network, store = Network(), make(tmp_path)
    get(store, network, 1, 2)
    get(store, network, 3)
    shutil.rmtree(tmp_path)
    forget(monkeypatch)
    get(store, network, 1, 3, 4, 1)
    assert network.seen == [1, 2, 3, 1, 3, 4]


def test_decoded_data_and_features_share_the_disk(tmp_path, monkeypatch) -> None:
    network, store = Network(), make(tmp_path)
    source = tmp_path / "sources" / ("0" * 40)
    arm = tmp_path / "arms" / ("0" * 40)
    for folder in (source, arm):
        folder.mkdir(parents=True)
        (folder / "bytes").write_bytes(bytes(5000))
    get(store, network, 1)
    (entry,) = (tmp_path / "features").iterdir()
    hour = 3600
    for path, age in ((arm, 4), (source, 3), (entry, 2)):
        os.utime(path, (time.time() - age * hour,) * 2)
    monkeypatch.setenv("FEDKD_CACHE_GB", "4e-6")
    get(store, network, 2)
    assert not source.exists()
    assert arm.exists()
    assert len(list((tmp_path / "features").iterdir())) == 2
    forget(monkeypatch)
    get(store, network, 1)  # so the other one was not used for longest
    size = sum(path.stat().st_size for path in entry.iterdir())
    monkeypatch.setenv("FEDKD_CACHE_GB", str(2.5 * size / 1e9))
    get(store, network, 3)
    assert entry.exists()
    assert len(list((tmp_path / "features").iterdir())) == 2
    forget(monkeypatch)
    get(make(tmp_path), network, 1, 3)
    assert network.seen == [1, 2, 3]


def test_features_with_a_flipped_bit_are_computed_again(tmp_path, monkeypatch) -> None:
    network, store = Network(), make(tmp_path)
    get(store, network, 1, 2)
    (file,) = tmp_path.rglob("features.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    forget(monkeypatch)
    get(store, network, 1, 2)
    assert network.seen == [1, 2, 1, 2]
