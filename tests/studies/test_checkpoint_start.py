"""Arms that start from a model that was trained before, and what that costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from safetensors.torch import load_file, save_file

from fedkd.config.study_file import load_study, parse_study
from fedkd.errors import UserError
from fedkd.report import print_summary
from fedkd.report.progress import StudyProgress
from fedkd.report.remarks import remarks_on
from fedkd.report.savings import count
from fedkd.results.folder import Results
from fedkd.runner.run import run_study
from fedkd.runner.study_runner import Outcome


def run(data: dict[str, Any], out: Path) -> Outcome:
    study = parse_study(yaml.safe_dump(data, sort_keys=False))
    progress = StudyProgress(Console(quiet=True), 2)
    return run_study(study, out=out, fresh=False, progress=progress)


@pytest.fixture(scope="module")
def first(make_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A study whose models others start from."""
    return run(make_data(), tmp_path_factory.mktemp("first"))


@pytest.fixture
def warm(make_data: Any, tmp_path: Path) -> Callable[..., Outcome]:
    """Return a function that runs an arm that starts from a checkpoint, against FedAvg."""

    def warm(checkpoint: Path, changes: dict[str, Any] | None = None) -> Outcome:
        arms = {
            "fedavg": {"start": "random"},
            "warm": {"start": "checkpoint", "checkpoint": str(checkpoint)},
        }
        long = {"rounds/max": 6, "rounds/local_epochs": 3}  # so that FedAvg reaches a target
        return run(make_data({"arms": arms, **long, **(changes or {})}), tmp_path / "out")

    return warm


def test_a_run_is_charged_with_the_exchanges_that_made_its_model(warm: Any, first: Outcome) -> None:
    outcome = warm(first.folder / "fedkd" / "seed-0")
    made, found = first.summary["runs"][1], outcome.summary["runs"][1]
    assert found["curve"][0]["accuracy"] == made["final_accuracy"]
    assert found["exchanges_before_round_1"] == made["exchanges_before_round_1"] + 2 == 3
    assert found["notes"]["checkpoint"]["uncharged"] is False
    assert found["targets"][0]["exchanges"] == 3 + found["targets"][0]["round"]
    assert {row["bound"] for row in outcome.summary["comparison"] if row["target"] == 0.3} == {
        "exact"
    }


def test_a_file_is_charged_nothing_and_every_row_says_so(
    warm: Any, first: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(first.folder / "fedkd" / "seed-0" / "checkpoint.safetensors", path)
    outcome = warm(path)
    found = outcome.summary["runs"][1]
    assert found["exchanges_before_round_1"] == 0
    assert found["notes"]["checkpoint"]["uncharged"] is True
    row = next(row for row in outcome.summary["comparison"] if row["target"] == 0.3)
    assert (row["arm"], row["bound"], row["uncharged"]) == (
        *("warm", "at_most"),
        {"arm": 1, "baseline": 0},
    )
    assert count(row, "arm") == f"at least {found['targets'][0]['round']}"
    print_summary(outcome.summary, Console(width=200))
    shown = capsys.readouterr().out
    assert "warm (from a file)" in shown
    assert "warm started from a file: exchanges that made it are unknown" in shown
    results = Results(outcome.summary, "x")
    assert any("warm started from a file" in remark for remark in remarks_on(results, None))
    # What is made of such a model has unknown exchanges too, also where its run is named.
    again = warm(outcome.folder / "warm" / "seed-0").summary["runs"][1]
    assert again["exchanges_before_round_1"] == 6
    assert again["notes"]["checkpoint"]["uncharged"] is True


def test_another_model_under_the_same_name_is_another_run(
    warm: Any, first: Outcome, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    runs = []
    for arm in ("fedkd", "fedkd", "fedavg"):
        shutil.copy(first.folder / arm / "seed-0" / "checkpoint.safetensors", path)
        runs.append(warm(path).summary["runs"][1])
    assert [each["cached"] for each in runs] == [False, True, False]
    assert runs[0]["curve"][0]["accuracy"] != runs[2]["curve"][0]["accuracy"]


def drop_tensor(path: Path) -> None:
    state = load_file(path)
    state.pop(sorted(state)[0])
    save_file(state, path)


def spoil(path: Path) -> None:
    state = load_file(path)
    save_file({key: tensor * float("nan") for key, tensor in state.items()}, path)


@pytest.mark.parametrize(
    ("change", "changes", "said"),
    [
        (Path.unlink, {}, "arms.warm.checkpoint: there is no file"),
        (drop_tensor, {}, "arms.warm.checkpoint"),
        (spoil, {}, "values that are not finite"),
        (lambda path: path.write_bytes(b"\x80\x04."), {}, "arms.warm.checkpoint"),
        (lambda _: None, {"model/arch": "cnn"}, "is a mlp, but the study needs cnn"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_before_anything_runs(
    change: Any, changes: Any, said: str, warm: Any, first: Outcome, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    shutil.copy(first.folder / "fedkd" / "seed-0" / "checkpoint.safetensors", path)
    change(path)
    with pytest.raises(UserError) as caught:
        warm(path, changes)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_of_a_run_is_refused(warm: Any, first: Outcome) -> None:
    with pytest.raises(UserError, match=r"is not the folder of a finished run; name one, such as"):
        warm(first.folder)


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"start": "checkpoint"}, "checkpoint: is missing"),
        ({"start": "random", "checkpoint": "a.safetensors"}, "use start: checkpoint"),
    ],
)
def test_start_and_checkpoint_go_together(arm: dict[str, str], said: str, make_data: Any) -> None:
    with pytest.raises(UserError, match=said):
        parse_study(json.dumps(make_data({"arms/warm": arm})))


def test_paths_are_seen_from_the_study_file_or_are_absolute_on_hosts(
    make_data: Any, tmp_path: Path
) -> None:
    arm = {"start": "checkpoint", "checkpoint": "runs/m.safetensors"}
    data = make_data({"arms/warm": arm})
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(data))
    loaded = load_study(tmp_path / "study.yaml")
    assert loaded.arms["warm"].checkpoint == str(tmp_path / "runs/m.safetensors")
    deployed = {
        **data,
        "data": {"classes": ["a", "b"], "channels": 1, "image_size": 8},
        "partition": {"scheme": "deployed", "names": ["north", "south"]},
        "pretraining": {},
        "arms": {"warm": arm},
        "baselines": [],
    }
    with pytest.raises(UserError, match=r"arms.warm.checkpoint: .* is a relative path"):
        parse_study(json.dumps(deployed))
