"""Every study file that the project ships loads."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from fedkd.config.study_file import dump_study, load_study, parse_study, study_schema

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCHEMA = EXPERIMENTS / "study.schema.json"
STUDIES = sorted(EXPERIMENTS.rglob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_a_shipped_study_loads_and_survives_a_round_trip(path: Path) -> None:
    study = load_study(path)
    assert parse_study(dump_study(study)) == study
    # Those behind the claims also ask what one exchange gives, which saves nothing.
    assert study.baselines or path.parent.name == "paper", "it shows no savings"


def test_the_quickstart_is_among_them() -> None:
    assert EXPERIMENTS / "quickstart.yaml" in STUDIES


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(SCHEMA.read_text()) == study_schema(), "run make schema"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_an_editor_finds_the_schema_and_accepts_the_study(path: Path) -> None:
    # The studies behind the claims are known by their text, which is not touched lightly.
    if path.parent.name != "paper":
        first = path.read_text().splitlines()[0]
        named = first.removeprefix("# yaml-language-server: $schema=")
        assert (path.parent / named).resolve() == SCHEMA
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(
        yaml.safe_load(path.read_text())
    )


@pytest.mark.parametrize(
    "change",
    [
        {"rouns": {}},
        {"targets": [1.5]},
        {"partition": {"silos": 3}},
        {"partition": {"scheme": "label-shards", "alpha": 1}},
        {"arms": {"fedavg": {"start": "nowhere"}}},
        {"rounds": {"max": 0}},
        {"rounds": {"local_loss": "proxmal"}},
        {"model": {"arch": "cnm"}},
        {"data": {"source": "npz:"}},
        {"arms": {"fedkd": {"start": "consolidated", "consolidation": {"method": "kdd"}}}},
    ],
    ids=str,
)
def test_an_editor_marks_what_the_study_would_refuse(change: dict[str, object]) -> None:
    study = {**yaml.safe_load((EXPERIMENTS / "quickstart.yaml").read_text()), **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(study, json.loads(SCHEMA.read_text()))
