"""Given models on every silo and the server, without training."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from fedkd.cli import app
from fedkd.config.study_file import parse_study
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.models.build import Shape, build_model
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state, save_state
from fedkd.report.progress import StudyProgress
from fedkd.results.evaluation import Evaluation
from fedkd.runner.evaluate import _name, evaluate_models
from fedkd.runner.run import run_study
from fedkd.runner.study_runner import Outcome
from strategies.context import RunContext
from strategies.evaluate_models import NamedModel, measure
from strategies.run_config import state_folder

SILOS = ["silo-0", "silo-1", "silo-2"]


@pytest.fixture(scope="module")
def outcome(make_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    study = parse_study(yaml.safe_dump(make_data(), sort_keys=False))
    progress = StudyProgress(Console(quiet=True), 2)
    return run_study(study, out=tmp_path_factory.mktemp("evaluate"), fresh=False, progress=progress)


@pytest.fixture
def call(make_data: Any, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs the command on models and the tiny study."""
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(make_data()))

    def call(*arguments: object) -> Any:
        words = ["evaluate", *map(str, arguments[:-1]), str(tmp_path / "study.yaml")]
        return CliRunner().invoke(app, [*words, *arguments[-1]])  # type: ignore[misc]

    return call


def test_a_table_of_models_and_silos_as_json_csv_and_text(
    call: Any, outcome: Outcome, tmp_path: Path
) -> None:
    runs = [outcome.folder / arm / "seed-0" for arm in ("fedkd", "fedavg")]
    copy = tmp_path / "copy.safetensors"
    shutil.copy(runs[0] / "checkpoint.safetensors", copy)
    found = call(*runs, copy, ["--json"])
    assert found.exit_code == 0, found.output
    measured = json.loads(found.stdout)["measured"]
    names = ["fedavg/seed-0", "fedkd/seed-0"]
    assert {row["model"] for row in measured} > set(names)
    assert {row["silo"] for row in measured} == {*SILOS, None}
    assert len(measured) == 3 * 4
    at = {(row["model"], row["silo"]): row for row in measured}
    for name, run in zip(names, outcome.summary["runs"], strict=True):
        assert at[name, None]["accuracy"] == run["final_accuracy"]
    sizes = {row["silo"]: row["num_examples"] for row in outcome.summary["silos"]}
    assert {silo: at["fedkd/seed-0", silo]["num_examples"] for silo in SILOS} == sizes
    (other,) = {row["model"] for row in measured} - set(names)
    assert other.endswith("copy.safetensors")
    assert [at[other, s]["accuracy"] for s in SILOS] == [
        at["fedkd/seed-0", s]["accuracy"] for s in SILOS
    ]
    rows = list(csv.DictReader(io.StringIO(call(*runs, ["--csv"]).stdout)))
    assert [(row["model"], row["silo"]) for row in rows[:4]] == [
        ("fedavg/seed-0", silo) for silo in (*SILOS, "")
    ]
    assert float(rows[0]["accuracy"]) == at["fedavg/seed-0", "silo-0"]["accuracy"]
    shown = call(*runs, []).stdout
    mean = sum(at["fedkd/seed-0", s]["accuracy"] * sizes[s] for s in SILOS) / sum(sizes.values())
    assert f"{mean:.1%}" in shown
    assert "all silos" in shown
    assert "server" in shown


def test_silos_are_those_of_the_seed(outcome: Outcome, make_study: Any) -> None:
    run = outcome.folder / "fedkd" / "seed-0"
    study = make_study()
    one, two = (evaluate_models(study, [run], seed=seed) for seed in (None, 1))
    assert one.accuracy("fedkd/seed-0", None) == two.accuracy("fedkd/seed-0", None)
    sizes = [[row.num_examples for row in found.measured] for found in (one, two)]
    assert sizes[0] != sizes[1]


@pytest.mark.parametrize("train", ["all", {"lora": {"rank": 2, "targets": ["1"]}}])
def test_silos_answer_as_in_a_simulation(
    train: Any, make_study: Any, pool: Any, cache_dir: Path, tmp_path: Path
) -> None:
    """Models of two architectures, in messages to ClientApps and computed directly.

    Those of runs that train adapters have these merged.
    """
    from clients.silo import Silo
    from fedkd.engines.inline import InlineGrid, make_grid
    from fedkd.messages import keys
    from fedkd.runner.trial import NullObserver

    weights = tmp_path / "weights.safetensors"
    save_state(weights, copy_state(build_model("mlp", Shape(10, 1, 8), seed=3)))
    own = {} if train == "all" else {"model/weights": str(weights), "model/train": train}
    study = make_study({"arms/cnn": {"start": "random", "arch": "cnn"}, **own})
    federation = Federation.load(study, 0, cache_dir)
    shape = federation.shape.merged
    models = [
        NamedModel(arch, arch, copy_state(build_model(arch, shape, seed=1)))
        for arch in ("mlp", "cnn")
    ]
    context = RunContext.of(federation, "fedavg", ())
    silos = [Silo.of(federation, name, "fedavg") for name in study.silo_names]
    grid = make_grid(silos, study, {keys.CONFIG_ARM: "fedavg"}, pool, InlineGrid)
    found = measure(grid, context, models, observer=NullObserver(), run_id="run")
    paths = []
    for model in models:
        paths.append(tmp_path / f"{model.name}.safetensors")
        save_model(paths[-1], model.state, ModelCard(model.arch, shape))
    direct = evaluate_models(study, paths)
    assert not found.unmeasured
    for model, path in zip(models, paths, strict=True):
        for silo in (*SILOS, None):
            accuracy = found.accuracy(model.name, silo)
            assert accuracy is not None
            assert accuracy == direct.accuracy(path.name, silo)


@pytest.mark.parametrize(
    ("card", "said"),
    [
        (ModelCard("cnn", Shape(10, 1, 8)), "is a cnn, but the study needs mlp"),
        (ModelCard("mlp", Shape(9, 1, 8)), "has num_classes 9, but the study's data have 10"),
        (ModelCard("mlp", Shape(10, 1, 16)), "has image_size 16"),
        (ModelCard("mlp", Shape(10, 1, 8), tuple("abcdefghij")), "has the classes a, b, c"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    card: ModelCard, said: str, make_study: Any, tmp_path: Path
) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, copy_state(build_model(card.arch, card.shape, seed=0)), card)
    with pytest.raises(UserError, match=said):
        evaluate_models(make_study(), [path])


def test_names_tell_models_apart() -> None:
    paths = [Path("/a/x/m.pt"), Path("/b/x/m.pt")]
    assert list(_name(paths)) == ["a/x/m.pt", "b/x/m.pt"]
    assert list(_name(paths[:1])) == ["m.pt"]
    with pytest.raises(UserError, match="given twice"):
        _name([*paths, paths[0]])


ROW = {"model": "m", "silo": None, "accuracy": 0.5, "loss": 1.0, "macro_f1": 0.5}


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"silo": "elsewhere"}, {"accuracy": 2.0}, {"num_examples": 0}],
)
def test_what_another_host_sends_is_checked(changes: dict[str, Any]) -> None:
    row = {**ROW, "num_examples": 3}
    assert Evaluation.parse({"measured": [row]}, ["m"], SILOS).accuracy("m", None) == 0.5
    with pytest.raises(ValueError, match=r"."):
        Evaluation.parse({"measured": [{**row, **changes}]}, ["m"], SILOS)


def test_a_run_on_a_host_is_found_by_names_that_are_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedkd.errors import FedKDError

    monkeypatch.setenv("FEDKD_STATE_DIR", str(tmp_path))
    assert state_folder("study", "run-1", "fedkd", 0) == tmp_path / "study/run-1/fedkd/seed-0"
    for parts in (("..", "run", "arm"), ("study", "a/b", "arm"), ("study", "run", "")):
        with pytest.raises(FedKDError, match="not a valid name of a folder"):
            state_folder(*parts, 0)
