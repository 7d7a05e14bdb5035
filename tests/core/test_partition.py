"""Partitions: what holds for every scheme, what each promises, and what is refused."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fedkd.config import Iid, LabelDirichlet, LabelDominant, LabelShards, Quantity
from fedkd.data.partition import partition
from fedkd.errors import UserError

SPECS = {
    "iid": Iid(),
    "quantity": Quantity(scheme="quantity", alpha=0.3),
    "label-dirichlet": LabelDirichlet(scheme="label-dirichlet", alpha=0.3),
    "label-shards": LabelShards(scheme="label-shards", classes_per_silo=2),
    "label-dominant": LabelDominant(scheme="label-dominant", share=0.8),
}
EVERY_SCHEME = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def make_labels(*counts: int, seed: int = 0) -> np.ndarray:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


def class_counts(labels: np.ndarray, part: np.ndarray, num_classes: int = 10) -> list[int]:
    return np.bincount(labels[part], minlength=num_classes).tolist()


@EVERY_SCHEME
@given(
    counts=st.lists(st.integers(0, 60), min_size=2, max_size=8),
    silos=st.integers(1, 12),
    min_size=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
def test_silos_are_disjoint_cover_all_and_are_large_enough(spec, counts, silos, min_size, seed):
    labels = make_labels(*counts)
    assume(len(labels) > 0)
    spec = spec.model_copy(update={"silos": silos, "min_size": min_size})
    try:
        parts = partition(labels, spec, seed)
    except UserError:
        # These two promise to succeed whenever the images suffice.
        assert spec.scheme not in ("iid", "quantity") or silos * min_size > len(labels)
        return
    assert len(parts) == silos
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert min(len(part) for part in parts) >= min_size
    again = partition(labels, spec, seed)
    assert [part.tolist() for part in again] == [part.tolist() for part in parts]


@EVERY_SCHEME
def test_the_seed_decides_which_image_goes_where(spec):
    labels = make_labels(*[100] * 10)
    first, second = (partition(labels, spec, seed) for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert set(one.tolist()) != set(other.tolist())
        assert one.tolist() != sorted(one.tolist())


@EVERY_SCHEME
def test_the_classes_of_a_silo_are_mixed(spec):
    labels = make_labels(*[100] * 10)
    part = max(partition(labels, spec, 0), key=lambda part: np.count_nonzero(np.diff(labels[part])))
    blocks = 1 + np.count_nonzero(np.diff(labels[part]))
    assert blocks > 3 * len(np.unique(labels[part]))


@EVERY_SCHEME
def test_no_global_state_is_used_or_left(spec, capfd):
    labels = make_labels(*[40] * 10)
    expected = [part.tolist() for part in partition(labels, spec, 5)]
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global generator is what must not be touched
    torch.manual_seed(1)
    filters = list(warnings.filters)
    numpy_state = np.random.get_state()  # noqa: NPY002 - likewise
    states = (random.getstate(), torch.get_rng_state().tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts = partition(labels, spec, 5)
    assert [part.tolist() for part in parts] == expected
    assert (random.getstate(), torch.get_rng_state().tolist()) == states
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert warnings.filters == filters
    assert capfd.readouterr() == ("", "")


def test_iid_gives_equal_sizes_and_one_mix():
    labels = make_labels(*[200] * 10)
    parts = partition(labels, Iid(silos=7), 0)
    assert {len(part) for part in parts} == {285, 286}
    for part in parts:
        assert max(class_counts(labels, part)) < 50
        assert min(class_counts(labels, part)) > 12


def test_quantity_varies_sizes_but_not_the_mix():
    labels = make_labels(*[500] * 2)
    spec = Quantity(scheme="quantity", silos=8, min_size=20, alpha=0.5)
    sizes = [len(part) for part in partition(labels, spec, 3)]
    assert min(sizes) >= 20
    assert max(sizes) > 4 * min(sizes)
    largest = max(partition(labels, spec, 3), key=len)
    assert abs(class_counts(labels, largest, 2)[0] / len(largest) - 0.5) < 0.1
    even = [len(part) for part in partition(labels, spec.model_copy(update={"alpha": 1000.0}), 3)]
    assert max(even) < 1.2 * min(even)


def test_quantity_succeeds_when_every_image_is_needed():
    parts = partition(make_labels(40, 40), Quantity(scheme="quantity", silos=8, min_size=10), 0)
    assert [len(part) for part in parts] == [10] * 8


def test_label_dirichlet_skews_labels_the_more_the_smaller_alpha_is():
    labels = make_labels(*[300] * 10)

    def classes_held(alpha: float) -> float:
        spec = LabelDirichlet(scheme="label-dirichlet", alpha=alpha, min_size=1)
        parts = partition(labels, spec, 0)
        return float(np.mean([np.count_nonzero(class_counts(labels, part)) for part in parts]))

    assert classes_held(0.05) < 5 < 9 < classes_held(100.0)


@pytest.mark.parametrize("seed", range(5))
def test_label_dirichlet_tries_more_seeds_than_flwr_datasets_draws(seed):
    """At this alpha a class goes to one silo as a whole: one draw in forty reaches all silos."""
    labels = make_labels(*[50] * 10)
    spec = LabelDirichlet(scheme="label-dirichlet", alpha=0.01, silos=8, min_size=30)
    assert min(len(part) for part in partition(labels, spec, seed)) >= 30


def test_label_dirichlet_gives_up_with_a_sentence(monkeypatch):
    monkeypatch.setattr("fedkd.data.partition._DIRICHLET_SEEDS", 20)
    spec = LabelDirichlet(scheme="label-dirichlet", alpha=0.001, silos=20, min_size=10)
    with pytest.raises(UserError, match=r"partition\.alpha: at 0.001.* 20 silos .*at least 10"):
        partition(make_labels(*[50] * 10), spec, 0)


@pytest.mark.parametrize(
    ("silos", "held"), [(10, 2), (10, 1), (25, 3), (5, 2), (5, 3), (3, 4), (1, 10), (4, 10)]
)
@pytest.mark.parametrize("seed", range(4))
def test_label_shards_hold_exactly_so_many_classes_and_use_all(silos, held, seed):
    labels = make_labels(*[90] * 10)
    spec = LabelShards(scheme="label-shards", silos=silos, classes_per_silo=held, min_size=1)
    parts = partition(labels, spec, seed)
    counts = np.array([class_counts(labels, part) for part in parts])
    assert np.count_nonzero(counts, axis=1).tolist() == [held] * silos
    assert counts.sum(axis=0).tolist() == [90] * 10


def test_label_shards_differ_by_seed_in_the_classes_of_the_first_silo():
    labels = make_labels(*[90] * 10)
    for silos in (5, 10):
        spec = LabelShards(scheme="label-shards", silos=silos, classes_per_silo=2)
        first = {
            tuple(np.flatnonzero(class_counts(labels, partition(labels, spec, seed)[0])))
            for seed in range(6)
        }
        assert len(first) > 3


def test_label_shards_count_the_classes_that_occur():
    labels = make_labels(50, 0, 50, 0, 50)
    spec = LabelShards(scheme="label-shards", silos=3, classes_per_silo=1)
    held = [np.flatnonzero(class_counts(labels, p, 5)).tolist() for p in partition(labels, spec, 0)]
    assert sorted(held) == [[0], [2], [4]]


@pytest.mark.parametrize(
    ("silos", "held", "sentence"),
    [
        (3, 2, "3 silos of 2 classes hold at most 6 of 10 classes"),
        (10, 11, "11 classes in each silo, but there are only 10"),
        (50, 10, "no assignment gave each of 50 silos"),
    ],
)
def test_label_shards_that_cannot_be(silos, held, sentence, monkeypatch):
    monkeypatch.setattr("fedkd.data.partition._SHARD_SEEDS", 20)
    labels = make_labels(*[100] * 9, 3)  # the last class is rarer than the silos that need it
    spec = LabelShards(scheme="label-shards", silos=silos, classes_per_silo=held)
    with pytest.raises(UserError, match=rf"partition\.classes_per_silo: .*{sentence}"):
        partition(labels, spec, 0)


def test_label_dominant_gives_each_class_a_silo_and_the_rest_evenly():
    labels = make_labels(*[100] * 10)
    spec = LabelDominant(scheme="label-dominant", silos=10, share=0.8)
    counts = np.array([class_counts(labels, part) for part in partition(labels, spec, 0)])
    assert np.sort(counts, axis=0).tolist() == [[2] * 10] * 9 + [[82] * 10]
    assert sorted(counts.argmax(axis=1).tolist()) == list(range(10))


@pytest.mark.parametrize(("silos", "owned"), [(5, [2] * 5), (20, [0] * 10 + [1] * 10)])
def test_label_dominant_with_fewer_or_more_silos_than_classes(silos, owned):
    labels = make_labels(*[400] * 10)
    spec = LabelDominant(scheme="label-dominant", silos=silos, share=0.5)
    counts = np.array([class_counts(labels, part) for part in partition(labels, spec, 0)])
    assert sorted((counts >= 200).sum(axis=1).tolist()) == owned
    # The rest is even: 200 of each class over all silos.
    assert set(counts[counts < 200].tolist()) == {200 // silos}


def test_label_dominant_without_a_rest_leaves_silos_empty_and_says_so():
    spec = LabelDominant(scheme="label-dominant", silos=12, share=1.0, min_size=5)
    with pytest.raises(UserError, match=r"silo-\d+ only 0; lower .*partition\.share or partition"):
        partition(make_labels(*[100] * 10), spec, 0)


@EVERY_SCHEME
@pytest.mark.parametrize(
    ("silos", "min_size", "sentence"),
    [
        (101, 1, r"partition\.silos: asks for 101 silos, but only 100 examples"),
        (10, 11, r"partition\.min_size: 10 silos of at least 11 examples need 110, but only 100"),
    ],
)
def test_too_few_images_are_refused_before_a_scheme_is_tried(spec, silos, min_size, sentence):
    spec = spec.model_copy(update={"silos": silos, "min_size": min_size})
    with pytest.raises(UserError, match=sentence):
        partition(make_labels(*[10] * 10), spec, 0)


def test_no_images_at_all_are_refused():
    with pytest.raises(UserError, match="only 0 examples"):
        partition(np.array([], dtype=np.int64), Iid(), 0)
