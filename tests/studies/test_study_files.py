"""Every study file that the project ships loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedkd.study_file import dump_study, load_study, parse_study

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
STUDIES = sorted(EXPERIMENTS.rglob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.relative_to(EXPERIMENTS)))
def test_a_shipped_study_loads_and_survives_a_round_trip(path: Path) -> None:
    study = load_study(path)
    assert parse_study(dump_study(study)) == study
    assert study.baselines, "a study without a baseline shows no savings"


def test_the_quickstart_is_among_them() -> None:
    assert EXPERIMENTS / "quickstart.yaml" in STUDIES
