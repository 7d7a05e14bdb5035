"""Results folders of fedkd 0.1.0 still open; the golden one was written by that version."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fedkd.api import Comparison, compare
from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.models.card import ModelCard
from fedkd.report.page import render_page
from fedkd.report.watch import read_state
from fedkd.results.folder import Results, read_study
from fedkd.results.upgrade import upgrade

GOLDEN = Path(__file__).parents[1] / "golden" / "results-0.1.0"
OLD_NAMES = (" blends:", " refine:", "filterbank", "student: discriminant")


def test_the_golden_folder_has_the_old_names() -> None:
    text = (GOLDEN / "study.yaml").read_text(encoding="utf-8")
    assert all(name in text for name in OLD_NAMES)


def test_the_report_opens_it_and_shows_a_study_that_runs_today() -> None:
    results = Results.read(GOLDEN)
    study = Study.model_validate(results.summary["resolved"])
    assert study.model.per_silo == {"silo-1": "patch-features"}
    assert study.arms["fedkd-discriminant"].arch == "patch-features"
    settings = {name: arm.consolidation for name, arm in study.arms.items() if arm.consolidation}
    assert settings["fedkd-blends"].mixed_inputs == 2
    assert settings["fedkd-blends"].finetune_epochs == 1
    assert settings["fedkd-discriminant"].student == "lda-head"
    page = render_page([results])
    assert "mixed_inputs: 2" in page
    assert not any(name in page for name in OLD_NAMES)


def test_python_opens_it() -> None:
    curves = Comparison.read(GOLDEN).to_pandas()
    assert set(curves["arm"]) == {"fedavg", "fedkd-blends", "fedkd-discriminant"}
    assert len(curves) == 9


def test_watch_opens_it() -> None:
    state = read_state(GOLDEN)
    assert state.ended
    assert [run.phase for run in state.runs] == ["budget"] * 3
    assert all(len(run.points) == 3 for run in state.runs)


def test_resuming_it_is_refused_in_one_sentence(tmp_path: Path) -> None:
    folder = tmp_path / "20261130T230800Z"
    shutil.copytree(GOLDEN, folder)
    with pytest.raises(UserError, match="another version of fedkd's code") as refused:
        compare(resume=folder)
    assert "\n" not in str(refused.value)


def test_every_renamed_key_and_name_is_converted() -> None:
    old = {
        "model": {"arch": "filterbank", "per_silo": {"north": "filterbank", "south": "cnn"}},
        "partition": {"scheme": "field"},
        "arms": {
            "refine": {"consolidation": {"student": "discriminant", "blends": 3, "refine": 0}}
        },
    }
    assert upgrade(old) == {
        "model": {
            "arch": "patch-features",
            "per_silo": {"north": "patch-features", "south": "cnn"},
        },
        "partition": {"scheme": "deployed"},
        "arms": {
            "refine": {
                "consolidation": {
                    "student": "lda-head",
                    "mixed_inputs": 3,
                    "finetune_epochs": 0,
                }
            }
        },
    }
    assert old["partition"] == {"scheme": "field"}, "the argument is not changed"


def test_the_card_of_an_old_checkpoint_names_the_architecture_of_today() -> None:
    card = {
        "arch": "filterbank",
        "num_classes": 10,
        "in_channels": 1,
        "image_size": 8,
        "classes": [],
        "facts": {},
        "version": "0.1.0",
    }
    read = ModelCard.from_metadata({"fedkd": json.dumps(card)})
    assert read is not None
    assert read.arch == "patch-features"


def test_a_current_study_is_unchanged() -> None:
    current = json.loads((GOLDEN / "summary.json").read_text(encoding="utf-8"))["resolved"]
    upgraded = upgrade(current)
    assert upgrade(upgraded) == upgraded


@pytest.mark.parametrize("content", ["[1]", "", "arms: [1]\nmodel: 3\n"])
def test_a_study_with_unexpected_content_is_a_user_error(content: str, tmp_path: Path) -> None:
    for name in ("summary.json", "study.yaml"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    (tmp_path / "study.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError):
        read_state(tmp_path)


def test_a_study_that_is_not_text_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path)
