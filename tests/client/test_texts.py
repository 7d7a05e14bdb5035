"""Deployed silos with texts: each has the network and its tokenizer in a folder of its own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fedkd.config.study_file import parse_study
from fedkd.data.images import content_hash
from fedkd.deploy.check import SiloCheck
from fedkd.deploy.silo_file import load_silo_file
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.messages import keys
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state
from strategies.context import RunContext

PROTOTYPES = {
    "weighting": "familiarity",
    "familiarity": {"basis": "backbone", "density": "pooled", "dims": 4},
    "epochs": 2,
}


@pytest.fixture
def texts(field: Any, text_folder: Path) -> Any:
    """Three silos with texts and networks of their own, and a server with texts to test on."""
    made, whole = field(), pd.read_csv(text_folder / "sentences.csv")
    whole[:60].to_csv(made.root / "server.csv", index=False)
    whole[60:100].to_csv(made.root / "transfer.csv", index=False)
    shutil.copytree(text_folder / "minilm", made.root / "minilm")
    made.study = {
        "data": {
            "source": f"text:{made.root / 'server.csv'}",
            "text": {"max_length": 12},
            "classes": ["good", "bad"],
            "transfer": {"source": f"text:{made.root / 'transfer.csv'}", "size": 40},
            "test": 0.9,
            "validation": 0,
        },
        "model": {"arch": f"hf:{made.root / 'minilm'}", "train": "head"},
        "rounds": {"max": 2, "lr": 0.5, "timeout": 60, "quorum": 0.3, "stop": "budget"},
        "arms": {
            "fedavg": {"start": "random"},
            "fedkd": {"start": "consolidated", "consolidation": PROTOTYPES},
        },
    }
    for index, name in enumerate(("north", "south", "west")):
        own = made.root / name
        shutil.copytree(text_folder / "minilm", own / "encoder")
        whole[100 + 50 * index : 150 + 50 * index].to_csv(own / "texts.csv", index=False)
    return made


def write(texts: Any, name: str, share: dict[str, Any], **model: str) -> Path:
    silo = {"name": name, "data": "text:texts.csv", "transfer": "text:../transfer.csv"}
    silo |= {"audit": "audit.jsonl", "threads": 1, "approve": "any"}
    silo |= {"share": {"min_samples": 3, **share}} | ({"model": model} if model else {})
    path: Path = texts.root / name / "silo.yaml"
    path.write_text(yaml.safe_dump(silo))
    return path


def test_silos_have_the_network_where_they_like(texts: Any) -> None:
    study = parse_study(texts.study_text())
    federation = Federation.on_server(study, 0, texts.root / "cache")
    context = RunContext.of(federation, "fedkd", ())
    for name in ("north", "south", "west"):
        path, share = texts.root / name / "own.safetensors", {"teacher": "weights", "moments": True}
        card = ModelCard(study.model.arch, context.shape, ("good", "bad"))
        save_model(path, copy_state(context.model(name)), card)
        write(texts, name, share, arch=study.model.arch, checkpoint="own.safetensors")
    in_place = texts.run("fedkd")
    for name in ("north", "south", "west"):
        silo = write(texts, name, share, weights="./encoder", checkpoint="own.safetensors")
    assert context.transfer is not None
    approved = {"study": "any", "transfer": [content_hash(context.transfer.images)]}
    west = yaml.safe_load(silo.read_text()) | {"transfer": None, "approve": approved}
    silo.write_text(yaml.safe_dump(west))  # it is sent the transfer set
    record = texts.run("fedkd")
    assert not record.quarantined
    assert [point.silos_ok for point in record.curve] == [3, 3, 3]
    losses = [[point.loss for point in each.curve] for each in (in_place, record)]
    assert losses[0] == losses[1]
    path = texts.root / "north" / "silo.yaml"
    for given in (study, None):
        findings = SiloCheck(load_silo_file(path), given).findings()
        assert not [each for each in findings if each.level == "broken"]
    # Without its copy, the folder of the study would have to be here.
    texts.study["model"]["arch"] = "hf:/nowhere/minilm"
    path = write(texts, "north", {"teacher": "none"})
    check = SiloCheck(load_silo_file(path), parse_study(texts.study_text()))
    (finding,) = [each for each in check.findings() if each.name == "model"]
    assert finding.value.startswith("model.arch: there is no folder /nowhere/minilm on this host")
    assert "model.weights in silo.yaml" in finding.value


def test_another_tokenizer_or_network_is_refused(texts: Any) -> None:
    texts.study["arms"] = {"fedavg": {"start": "random"}}
    texts.study["data"] |= {"source": "none", "test": 0.2}  # silos measure; nothing is transferred
    for name in ("north", "south", "west"):
        write(texts, name, {"teacher": "none"}, weights="./encoder")
    words = texts.root / "north" / "encoder" / "tokenizer.json"
    words.write_text(words.read_text().replace('"film"', '"movie"'))
    settings = texts.root / "south" / "encoder" / "config.json"
    settings.write_text(settings.read_text().replace('"gelu"', '"relu"'))
    record = texts.run("fedavg")
    assert record.accuracy_source == "silos"
    assert [point.silos_ok for point in record.curve] == [0, 1, 1]
    reasons = sorted(entry.reason for entry in record.quarantined)
    assert len(reasons) == 2
    assert reasons[0].startswith("its tokenizer has the hash ")
    assert reasons[1].startswith("the fixed part of its models has the hash ")
    assert keys.TOKENIZER in texts.audit("west")[0]["sent"][keys.INFO]


def test_weights_of_a_network_are_a_folder(texts: Any) -> None:
    with pytest.raises(UserError, match=r"write a folder as \./encoder"):
        load_silo_file(write(texts, "north", {"teacher": "none"}, weights="encoder"))
