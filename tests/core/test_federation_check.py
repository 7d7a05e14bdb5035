"""The check before a study runs: batches of one, checkpoints, sources, targets without meaning."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_model
from torch import nn

from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.federation.check import check_study
from fedkd.federation.federation import Federation
from fedkd.federation.metric_check import constant_metrics
from fedkd.models.build import Shape, build_model

MODULE = """
from torch import nn

def bn(num_classes, in_channels, image_size):
    width = in_channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes)
    )
"""
KD = {"start": "consolidated", "consolidation": {"student": "fresh", "epochs": 1}}


@pytest.fixture(autouse=True)
def _own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "normalising.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def check(make_data: Any, cache_dir: Path) -> Callable[..., tuple[str, ...]]:
    """Return a function that checks the tiny study with changes, on all its seeds."""

    def run(changes: dict[str, Any], arms: dict[str, Any] | None = None) -> tuple[str, ...]:
        study = Study.model_validate(make_data(changes) | ({"arms": arms} if arms else {}))
        return check_study([Federation.load(study, seed, cache_dir) for seed in study.seeds])

    return run


LONELY = {
    "model/arch": "normalising:bn",
    "data": {"source": "digits", "train_size": 13, "test_size": 60, "transfer": {"size": 40}},
    "partition": {"scheme": "quantity", "silos": 4, "min_size": 1, "alpha": 0.1},
}
ENOUGH = {"model/arch": "normalising:bn"}


@pytest.mark.parametrize(
    ("changes", "arms", "sentence"),
    [
        (LONELY, None, r"partition\.min_size: silo-\d has a single example, but its model"),
        (ENOUGH | {"pretraining/batch_size": 1}, None, r"pretraining\.batch_size: is 1, but"),
        (ENOUGH | {"rounds/batch_size": 1}, None, r"rounds\.batch_size: is 1, but the model of"),
        (ENOUGH | {"data/transfer": {"size": 1}}, {"fedkd": KD}, r"data\.transfer\.size: is 1"),
        (
            ENOUGH,
            {"fedkd": {**KD, "consolidation": {**KD["consolidation"], "batch_size": 1}}},
            r"arms\.fedkd\.consolidation\.batch_size: is 1, but normalising:bn cannot be trained",
        ),
        (
            ENOUGH,
            {"fedkd": {**KD, "consolidation": {**KD["consolidation"], "subset": {"size": 1}}}},
            r"data\.transfer\.size: is 1",
        ),
        (
            {"model/per_silo": {"silo-1": "normalising:bn"}},
            {
                "fedkd": {
                    **KD,
                    "consolidation": {**KD["consolidation"], "method": "dml", "batch_size": 1},
                }
            },
            r"arms\.fedkd\.consolidation\.batch_size: is 1, but normalising:bn",
        ),
        (
            ENOUGH,
            {"fusion": {"start": "random", "strategy": "feddf", "fusion": {"batch_size": 1}}},
            r"arms\.fusion\.fusion\.batch_size: is 1",
        ),
    ],
)
def test_batches_of_one_never_reach_batch_normalisation(check, changes, arms, sentence):
    if arms and "fedavg" not in arms:
        changes = changes | {"baselines": []}
    with pytest.raises(UserError, match=sentence):
        check(changes, arms)


def test_batches_of_one_are_fine_for_other_models(check):
    settings = {**KD["consolidation"], "batch_size": 1}
    arms = {"fedavg": {"start": "random"}, "fedkd": {**KD, "consolidation": settings}}
    changes = {"pretraining/batch_size": 1, "rounds/batch_size": 1, "data/transfer": {"size": 1}}
    assert check(changes, arms) == ()
    assert check(LONELY | {"model/arch": "mlp"}) == ()


def test_a_silo_that_only_the_rounds_leave_out_is_told_of(check):
    warnings = check(LONELY, {"fedavg": {"start": "random"}})
    (warning,) = [text for text in warnings if "silo-" in text]
    assert warning.startswith("arms.fedavg: silo-")
    assert "of seed 0 cannot be trained in the rounds: normalising:bn needs batch" in warning
    assert "raise partition.min_size to 2 or more" in warning


def test_every_seed_is_looked_at(check):
    with pytest.raises(UserError, match="has a single example"):
        check(LONELY | {"seeds": [3, 4, 5, 6]})


def test_a_target_that_one_class_reaches_is_told_of(check):
    (warning,) = check({"targets": [0.05, 0.9]})
    assert warning.startswith("targets: always predicting one class reaches 5.0%")
    assert check({"targets": [0.2, 0.9]}) == ()


def test_the_largest_share_of_all_seeds_counts(make_data, cache_dir):
    # Seeds of one study have the same test images; here each has a split of its own.
    changes = ({"data/test_size": 20, "data/split_seed": seed} for seed in (0, 2))
    studies = [Study.model_validate(make_data(each)) for each in changes]
    federations = [Federation.load(study, 0, cache_dir) for study in studies]
    shares = [
        constant_metrics(federation.split.test.labels, 10)["accuracy"] for federation in federations
    ]
    for federation, share in zip(federations, shares, strict=True):
        assert share == int(federation.split.test.labels.bincount().max()) / 20
    assert shares[0] != shares[1]
    between = (shares[0] + shares[1]) / 2
    changed = [study.model_copy(update={"targets": [between]}) for study in studies]
    federations = [Federation.load(study, 0, cache_dir) for study in changed]
    (warning,) = check_study(federations)
    assert f"({max(shares):.1%} of the test examples" in warning


def test_what_was_changed_in_a_checkpoint_is_told(check, tmp_path):
    path = tmp_path / "half.safetensors"
    save_model(nn.DataParallel(build_model("mlp", Shape(10, 1, 8), seed=0).half()), str(path))
    prefix, width = check({"pretraining/checkpoints": {"silo-1": str(path)}})
    assert prefix == f"{path}: the prefix module. was removed from all names"
    assert "6 tensors of float16 were converted" in width


def test_a_checkpoint_that_is_not_finite_is_told_of(check, tmp_path):
    path, model = tmp_path / "nan.safetensors", build_model("mlp", Shape(10, 1, 8), seed=0)
    with torch.no_grad():
        model[1].bias[0] = torch.nan
    save_model(model, str(path))
    (warning,) = check({"pretraining/checkpoints": {"silo-1": str(path)}})
    assert "has values that are not finite, so silo-1 is not used as a teacher" in warning


@pytest.fixture
def gaps(tmp_path: Path) -> str:
    """Return a source whose labels count from 1."""
    images = np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "gaps.npz", images=images, labels=np.arange(400) % 3 + 1)
    return f"npz:{tmp_path}/gaps.npz"


def test_warnings_of_sources_name_them(check, gaps):
    (warning,) = check({"data/source": gaps, "targets": [0.9]})
    assert warning.startswith(f"{gaps}: of 4 classes, 1 have no example (labels 0)")


def test_a_command_that_needs_a_transfer_set_says_so(make_data, cache_dir):
    changes = {"data/transfer": {"size": 1300}, "arms": {"fedavg": {"start": "random"}}}
    federation = Federation.load(Study.model_validate(make_data(changes)), 0, cache_dir)
    assert federation.split.transfer is None
    with pytest.raises(
        UserError, match=r"data\.transfer\.size: 1300 examples are requested, but too few"
    ):
        federation.require_transfer()
