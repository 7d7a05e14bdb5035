"""Deployed silos with pre-trained networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from clients.deployed import open_silo
from fedkd.config.study_file import parse_study
from fedkd.deploy.rehearsal import shorten, write_silo
from fedkd.deploy.silo_file import load_silo_file
from fedkd.engines.loopback import CONNECTION
from fedkd.errors import UserError
from fedkd.messages.describe import Description
from fedkd.messages.validate import RefusedError
from fedkd.models.backbone import Backbone, Trained
from fedkd.models.build import Shape, build_model
from fedkd.models.state import save_state
from strategies.introductions import _check_fixed_part

SHAPE = Shape(3, 1, 8)
OWN = {"mean": [0.25], "std": [0.5]}
IN_BACKBONE = {"weighting": "familiarity", "epochs": 2, "student": "fresh"}


@pytest.fixture
def study(field: Any, tmp_path: Path) -> Any:
    """Return a function that makes a field whose silos have one network and heads of their own."""

    def make(model: dict[str, Any], silos: dict[str, dict[str, Any]] | None = None) -> Any:
        body = build_model("cnn", SHAPE, seed=0).state_dict()
        save_state(tmp_path / "weights.safetensors", body)
        made = field()
        for number, name in enumerate(("north", "south", "west")):
            head = build_model("cnn", SHAPE, seed=number).state_dict()
            own = {key: head[key] if key.startswith("9.") else body[key] for key in body}
            save_state(tmp_path / name / "plain.safetensors", own)
            path = tmp_path / name / "silo.yaml"
            data = yaml.safe_load(path.read_text())
            data["model"] = {
                "checkpoint": "plain.safetensors",
                "arch": "cnn",
                **(silos or {}).get(name, {}),
            }
            path.write_text(yaml.safe_dump(data))
        made.study = {
            "model": {"arch": "cnn", "weights": str(tmp_path / "weights.safetensors"), **model},
            "arms": {
                "fedkd": {
                    "start": "consolidated",
                    "consolidation": {
                        **IN_BACKBONE,
                        "familiarity": {"basis": "backbone", "density": "pooled"},
                    },
                },
            },
        }
        return made

    return make


def opened(made: Any, name: str) -> Any:
    file = load_silo_file(made.root / name / "silo.yaml")
    return open_silo(file, parse_study(made.study_text()), "fedkd", 0)[0]


def test_silos_share_heads_and_sums_in_the_backbone(study: Any) -> None:
    made = study({"train": "head", "preprocessing": OWN})
    record = made.run("fedkd")
    assert not record.quarantined
    assert [point.silos_ok for point in record.curve] == [3, 3]
    head = 4 * (3 * 128 + 3)
    assert 3 * head < record.curve[1].bytes_up < 3 * (head + 2000)


def test_a_silo_says_how_its_own_model_was_trained(study: Any) -> None:
    made = study(
        {"preprocessing": OWN}, {"north": {"preprocessing": {"mean": [0.5], "std": [0.1]}}}
    )
    states = [opened(made, name).own_model().state for name in ("north", "south")]
    assert [float(state["preprocess.mean"]) for state in states] == [0.5, 0.25]
    assert [float(state["preprocess.std"]) for state in states] == pytest.approx([0.1, 0.5])


def test_weights_may_lie_elsewhere_on_a_silos_host(study: Any, tmp_path: Path) -> None:
    made = study({"train": "head"}, {"north": {"weights": "here/network.safetensors"}})
    (tmp_path / "north" / "here").mkdir()
    expected = opened(made, "south").shape.backbone.fixed_hash
    weights = tmp_path / "weights.safetensors"
    weights.rename(tmp_path / "north" / "here" / "network.safetensors")
    assert opened(made, "north").shape.backbone.fixed_hash == expected
    with pytest.raises(UserError, match=f"model.weights: {weights} cannot be read"):
        opened(made, "south")


def test_weights_of_a_silo_without_a_model_of_its_own(study: Any, tmp_path: Path) -> None:
    own = {"checkpoint": None, "arch": None, "weights": str(tmp_path / "weights.safetensors")}
    made = study({"train": "head"}, {"north": own})
    path = tmp_path / "north" / "silo.yaml"
    data = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(data | {"share": data["share"] | {"teacher": "none"}}))
    silo = opened(made, "north")
    assert silo.own_model().problem == "it has no model of its own"
    assert silo.shape.backbone.fixed_hash == opened(made, "south").shape.backbone.fixed_hash


@pytest.mark.parametrize("model", [{}, {"train": "head", "preprocessing": OWN}])
def test_a_preprocessing_that_the_study_has_no_place_for_is_refused(
    study: Any, model: dict[str, Any]
) -> None:
    made = study(model, {"north": {"preprocessing": {"mean": [0.5], "std": [0.1]}}})
    with pytest.raises(UserError, match="the models of the study have none of their own"):
        opened(made, "north")


def test_a_silo_with_another_fixed_part_takes_no_part() -> None:
    ours = Backbone("cnn", "weights.pt", "one", None, Trained("head"))
    theirs = Backbone("cnn", "weights.pt", "other", None, Trained("head"))
    _check_fixed_part(ours, Description("cnn", 5, fixed_part=ours.fixed_hash))
    _check_fixed_part(None, Description("cnn", 5))
    for description in (
        Description("cnn", 5, fixed_part=theirs.fixed_hash),
        Description("cnn", 5),
    ):
        with pytest.raises(RefusedError, match=r"both need the same model\.weights"):
            _check_fixed_part(ours, description)


@pytest.mark.parametrize(
    ("train", "num_trained"),
    [("all", 10), ("head", 2), ({"lora": {"rank": 2, "targets": ["7"]}}, 4)],
)
def test_a_silo_of_a_rehearsal_has_the_fixed_part_of_the_study(
    train: Any, num_trained: int, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_state(weights, build_model("cnn", SHAPE, seed=0).state_dict())
    model = {"arch": "cnn", "weights": str(weights), "train": train, "preprocessing": OWN}
    settings = {
        "name": "rehearsed",
        "data": {"classes": ["a", "b", "c"], "channels": 1, "image_size": 8},
        "partition": {"scheme": "deployed", "names": ["north"]},
        "model": model,
        "targets": [0.9],
        "arms": {"fedavg": {"start": "average"}},
    }
    short = shorten(parse_study(yaml.safe_dump(settings)), folder=tmp_path, engine=CONNECTION)
    path = write_silo(short, "north", tmp_path / "north", images=12)
    silo = open_silo(load_silo_file(path), short, "fedavg", 0)[0]
    assert len(silo.own_model().state) == num_trained
