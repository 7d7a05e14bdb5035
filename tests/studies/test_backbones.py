"""Studies of pre-trained networks, from the study to the exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision import models

import fedkd
from fedkd.config.study_file import resolve_study
from fedkd.errors import UserError
from fedkd.models import fixed
from fedkd.models.card import read_card
from fedkd.models.preprocessing import Preprocessing
from fedkd.offline.export import export_model
from fedkd.runner.evaluate import evaluate_models

NAME = "shufflenet_v2_x0_5"
SMALL = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 16}
IN_BACKBONE = {"basis": "backbone", "density": "pooled"}
LDA = {
    "student": "lda-head",
    "teachers": "densities",
    "epochs": 0,
    "weighting": "familiarity",
    "familiarity": IN_BACKBONE,
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "weights.pt"
    torch.save(models.get_model(NAME, weights=None).state_dict(), path)
    return path


FEW = {"source": "digits", "train_size": 40, "test_size": 30, "transfer": {"size": 20}}


def study(weights: Path, **changes: Any) -> dict[str, Any]:
    model = {"arch": f"torchvision:{NAME}", "weights": str(weights), "preprocessing": SMALL}
    return {
        "name": "pictures",
        "data": {
            "source": "digits",
            "train_size": 90,
            "test_size": 60,
            "transfer": {"size": 40},
        },
        "partition": {"scheme": "iid", "silos": 2},
        "pretraining": {"epochs": 1},
        "rounds": {"max": 1},
        "targets": [0.99],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
        **changes,
        "model": {**model, **changes.get("model", {})},
    }


def points(out: Path, arm: str, seed: int = 0) -> list[dict[str, Any]]:
    path = next(out.rglob(f"{arm}/seed-{seed}/rounds.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_heads_alone_are_exchanged_and_each_image_is_seen_once(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that is exported normalises images itself."""
    monkeypatch.setenv("FEDKD_CACHE_DIR", str(tmp_path / "cache"))
    seen: list[bytes] = []
    compute = fixed.FixedPart.compute

    def record(self: fixed.FixedPart, images: torch.Tensor, **kwargs: str) -> torch.Tensor:
        seen.extend(image.numpy().tobytes() for image in images)
        return compute(self, images, **kwargs)

    monkeypatch.setattr(fixed.FixedPart, "compute", record)
    arms = {
        "fedavg": {"start": "random"},
        "average": {"start": "average"},
        "control-lda": {"start": "consolidated", "consolidation": LDA},
        "fedkd": {
            "start": "consolidated",
            "consolidation": {
                "student": "fresh",
                "epochs": 2,
                "weighting": "familiarity",
                "familiarity": {"basis": "backbone"},
            },
        },
    }
    settings = study(weights, model={"train": "head"}, arms=arms, seeds=[0, 1])
    fedkd.compare(settings, out=tmp_path / "out")
    assert len(seen) == len(set(seen)) > 150
    head = 10 * 1024 + 10
    for arm in arms:
        for seed in (0, 1):
            sent = points(tmp_path / "out", arm, seed)[1]["bytes_up"]
            assert 2 * 4 * head <= sent < 2 * 4 * head + 4000
    program = export_model(
        next((tmp_path / "out").rglob("fedavg/seed-0")), tmp_path / "model.pt2", "torch-export"
    )
    assert program["input"]["range"] == [0, 1]
    assert "the program normalises them itself" in program["input"]["preprocessing"]
    lda = points(tmp_path / "out", "control-lda")[0]["accuracy"]
    assert lda > points(tmp_path / "out", "fedavg")[0]["accuracy"] + 0.2
    before = len(seen)
    fixed._store.cache_clear()
    alone = {"arms": {"fedkd": arms["fedkd"]}, "baselines": [], "seeds": [0]}
    fedkd.compare({**settings, **alone, "rounds": {"max": 2}}, out=tmp_path / "again")
    assert len(seen) == before
    again = points(tmp_path / "again", "fedkd")
    assert [p["accuracy"] for p in again[:2]] == [
        p["accuracy"] for p in points(tmp_path / "out", "fedkd")
    ]


@pytest.mark.parametrize("train", [{"last": 1}, {"lora": {"rank": 2, "targets": ["branch2.0"]}}])
def test_a_part_is_trained_and_the_whole_network_is_exported(
    train: dict[str, Any], weights: Path, tmp_path: Path
) -> None:
    settings = study(weights, data=FEW, model={"train": train})
    summary = fedkd.compare(settings, out=tmp_path / "out").summary
    assert not summary["failures"]
    (run,) = summary["runs"]
    assert all(silo["global"] is not None for silo in run["silos_get"])
    sent = points(tmp_path / "out", "fedavg")[1]["bytes_up"]
    assert sent < 2 * 3_000_000 / 2
    folder = next((tmp_path / "out").rglob("fedavg/seed-0"))
    found = evaluate_models(resolve_study(settings), [folder])
    (on_server,) = [each for each in found.measured if each.silo is None]
    assert on_server.accuracy == pytest.approx(run["curve"][-1]["accuracy"])
    described = export_model(folder, tmp_path / "model.safetensors", "safetensors")
    assert "subtract [0.485, 0.456, 0.406]" in described["input"]["preprocessing"]
    network = models.get_model(NAME, num_classes=10)
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    saved = torch.load(weights, weights_only=True)
    assert torch.equal(network.state_dict()["conv1.0.weight"], saved["conv1.0.weight"])


def test_a_silo_keeps_the_preprocessing_of_its_checkpoint(weights: Path, tmp_path: Path) -> None:
    network = models.get_model(NAME, num_classes=10)
    save_file(network.state_dict(), tmp_path / "north.safetensors")
    own = {"mean": [0.5] * 3, "std": [0.25] * 3, "size": 16}
    pretraining = {
        "epochs": 1,
        "preprocessing": {"silo-0": own, "silo-1": own},
        "checkpoints": {"silo-1": str(tmp_path / "north.safetensors")},
    }
    arms = {"arms": {"best": {"start": "best"}}, "baselines": ["best"]}
    settings = study(weights, data=FEW, pretraining=pretraining, **arms)
    fedkd.compare(settings, out=tmp_path / "out")
    final = next((tmp_path / "out").rglob("best/seed-0/checkpoint.safetensors"))
    card = read_card(final, what="x")
    assert card is not None
    assert card.preprocessing == Preprocessing((0.5,) * 3, (0.25,) * 3, 16)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {
                "pretraining": {"preprocessing": {"silo-1": "none"}},
                "arms": {"a": {"start": "average"}},
            },
            "averages models of silos whose preprocessing differs",
        ),
        (
            {"pretraining": {"preprocessing": {"silo-1": "none"}}, "model": {"train": "head"}},
            "pretraining.preprocessing: belongs to the part that nobody trains",
        ),
        ({"pretraining": {"preprocessing": {"silo-9": "none"}}}, "no silo is named 'silo-9'"),
        ({"model": {"weights": None, "train": "head"}}, "set model.weights"),
        ({"model": {"arch": "cnn", "weights": "V1"}}, "cnn has no weights with names"),
        ({"model": {"train": {"lora": {"rank": 0}}}}, "model.train.lora.rank: 0 is less than 1"),
        ({"model": {"train": {"last": 1, "first": 2}}}, "model.train.first: unknown key"),
        ({"model": {"train": "heads"}}, "model.train: 'heads' is not one of all, head"),
        (
            {"model": {"preprocessing": {"mean": [0.5], "std": [0.5, 0.1]}}},
            "std: has 2 entries, but mean has 1",
        ),
        (
            {
                "model": {"train": "all"},
                "arms": {"control-lda": {"start": "consolidated", "consolidation": LDA}},
            },
            "set model.weights and model.train: head",
        ),
    ],
)
def test_keys_that_contradict_each_other_are_refused(
    changes: dict[str, Any], sentence: str, weights: Path
) -> None:
    with pytest.raises(UserError) as refused:
        resolve_study(study(weights, **changes))
    assert sentence in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
