"""A study of silos in the field: what it must say, what it may not, and what the server owns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedkd.config import Study
from fedkd.config.own import names_at_silo
from fedkd.config.study_file import load_study, parse_study
from fedkd.engines import check_engine
from fedkd.errors import UserError
from fedkd.federation.check import check_study
from fedkd.federation.deployed_data import draw_transfer, load_server_split
from fedkd.federation.federation import Federation
from fedkd.federation.split import load_split

DATA = {"classes": ["a", "b", "c"], "channels": 1, "image_size": 8}
FEDKD = {"start": "consolidated"}


def make(changes: dict[str, Any] | None = None) -> Study:
    data = {
        "name": "f",
        "data": DATA,
        "partition": {"scheme": "deployed", "names": ["s-10", "s-2", "north"]},
        "targets": [0.5],
        "arms": {"fedavg": {"start": "random"}},
        **(changes or {}),
    }
    return parse_study(yaml.safe_dump(data))


def write_images(path: Path, count: int) -> str:
    images = np.random.default_rng(1).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    np.savez(path, images=images, labels=np.arange(count) % 3)
    return f"npz:{path}"


def test_silos_stand_in_natural_order_and_need_no_number() -> None:
    study = make()
    assert study.silo_names == ("north", "s-2", "s-10")
    assert study.partition.silos == 3
    assert parse_study(yaml.safe_dump(study.to_dict())) == study


def test_a_server_owns_no_images_unless_the_study_says_so() -> None:
    study = make()
    assert study.data.source == "none"
    assert study.data.validation == 0
    split = load_server_split(study, 0)
    assert len(split.test) == len(split.validation) == len(split.silos) == 0
    assert split.transfer is None
    assert split.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {**DATA, "classes": None}}, "data.classes: is missing"),
        ({"data": {"classes": ["a", "b"], "image_size": 8}}, "data.channels: is missing"),
        ({"data": {**DATA, "classes": ["a", "a"]}}, "classes: names 'a' twice"),
        ({"data": {**DATA, "train_size": 10}}, "data.train_size"),
        ({"data": {**DATA, "validation": 0.1}}, "data.validation: the server has no examples"),
        ({"data": {**DATA, "source": "npz:x.npz"}}, "relative path"),
        ({"data": {**DATA, "transfer": {"source": "folder:x"}}}, "relative path"),
        ({"arms": {"fedkd": FEDKD}}, "data.transfer.source: is missing; arms.fedkd"),
        ({"arms": {"x": {"start": "random", "strategy": "feddf"}}}, "data.transfer.source"),
        ({"pretraining": {"checkpoints": {"north": "x.safetensors"}}}, "silo.yaml"),
        ({"partition": {"scheme": "deployed"}}, "partition.names: is missing"),
        ({"partition": {"scheme": "deployed", "names": ["a", "a"]}}, "names has a silo twice"),
        ({"partition": {"scheme": "deployed", "names": ["a", "b"], "silos": 3}}, "has 2 entries"),
        ({"model": {"per_silo": {"silo-0": "mlp"}}}, "they are north, s-2, s-10"),
        ({"partition": {"scheme": "iid", "silos": 3}}, "data.classes: is read from data.source"),
        (
            {"data": {"source": "none"}, "partition": {"scheme": "iid"}},
            "none leaves nothing to divide among simulated silos",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        make(changes)
    assert said in str(caught.value)


@pytest.mark.parametrize("engine", ["inline", "ray"])
def test_engines_that_simulate_refuse_silos_in_the_field(engine: str) -> None:
    with pytest.raises(UserError, match=f"engine.name: {engine} simulates silos"):
        check_engine(make({"engine": {"name": engine}}))
    with pytest.raises(UserError, match="on hosts of their own"):
        load_split(make(), 0)


def test_files_of_the_server_need_not_be_on_the_callers_host(tmp_path: Path) -> None:
    study = make({"data": {**DATA, "source": "npz:/nowhere/at-all.npz"}})
    federation = Federation.for_caller(study, 0, tmp_path)
    assert check_study([federation]) == ()
    assert federation.holdings() == []
    with pytest.raises(UserError, match=r"there is no file /nowhere/at-all\.npz"):
        Federation.on_server(study, 0, tmp_path)


def test_the_servers_own_images_are_cut_as_ever(tmp_path: Path) -> None:
    source = write_images(tmp_path / "own.npz", 100)
    data = {**DATA, "source": source, "test": 0.5, "validation": 0.2, "transfer": {"size": 20}}
    split = load_server_split(make({"data": data, "arms": {"fedkd": FEDKD}}), 0)
    assert (len(split.test), len(split.validation)) == (50, 10)
    assert split.transfer is not None
    assert len(split.transfer) == 20
    wrong = {**data, "classes": ["a", "b"]}
    with pytest.raises(UserError, match=r"names 2 classes, but .* has 3"):
        load_server_split(make({"data": wrong}), 0)


def test_a_silo_with_the_source_draws_the_servers_transfer_set(tmp_path: Path) -> None:
    there = write_images(tmp_path / "server.npz", 60)
    here = write_images(tmp_path / "silo.npz", 60)
    data = {**DATA, "transfer": {"source": there, "size": 25}}
    study = make({"data": data, "arms": {"fedkd": FEDKD}})
    for seed in (0, 1):
        sent, held = load_server_split(study, seed).transfer, draw_transfer(study, seed, here)
        assert sent is not None
        assert held is not None
        assert torch.equal(sent.images, held.images)
    assert draw_transfer(study, 0, None) is None


def test_noise_needs_no_source_on_either_side() -> None:
    data = {**DATA, "transfer": {"source": "noise", "size": 25}}
    study = make({"data": data, "arms": {"fedkd": FEDKD}})
    sent, held = load_server_split(study, 3).transfer, draw_transfer(study, 3, None)
    assert sent is not None
    assert held is not None
    assert torch.equal(sent.images, held.images)


def test_paths_of_the_server_stay_as_they_are(tmp_path: Path) -> None:
    study = make({"data": {**DATA, "source": "npz:/srv/x.npz"}})
    (tmp_path / "f.yaml").write_text(yaml.safe_dump(study.to_dict()))
    assert load_study(tmp_path / "f.yaml") == study


def test_a_silo_needs_the_augmentation_of_its_rounds_alone() -> None:
    changes = {
        "pretraining": {"augment": "own:before"},
        "rounds": {"augment": "own:during"},
        "arms": {
            "rounds": {"start": "own:start"},
            "fedavg": {"start": "random", "rounds": {"augment": "own:other"}},
        },
    }
    assert {(path, name) for path, _, name in names_at_silo(make(changes), "north")} == {
        ("rounds.augment", "own:during"),
        ("arms.fedavg.rounds.augment", "own:other"),
    }
