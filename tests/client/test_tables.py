"""Deployed silos with tables: sums of columns leave with consent alone, and all encode alike."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from fedkd.config.study_file import parse_study
from fedkd.config.table import Table
from fedkd.data.alignment import align
from fedkd.data.columns import Column, Encoder, TableSums
from fedkd.data.tabular import read_table
from fedkd.errors import FedKDError, UserError
from fedkd.messages import keys
from fedkd.messages.run_log import LogReader
from fedkd.messages.table_sums import read_reply, write_reply
from fedkd.messages.validate import RefusedError
from fedkd.models.build import Shape, build_model, rebuild
from fedkd.models.card import read_card
from fedkd.models.state import copy_state, save_state
from fedkd.report.progress import StudyProgress
from fedkd.results.record import CHECKPOINT_FILE
from fedkd.runner.run import run_study
from strategies.evaluate_models import serve_evaluation

SHARE = {"teacher": "none", "table_sums": True, "min_samples": 3}
ARRAYS = ("means", "deviations", "missing")
ARMS = {"fedavg": {"start": "random"}}


def make_table(seed: int, rows: int = 60) -> pd.DataFrame:
    """A number, a number with gaps, and a name of which one value is rare."""
    draw = np.random.default_rng(seed)
    age, dose = draw.normal(50 + seed, 10, rows), draw.normal(size=rows)
    ward = np.where(np.arange(rows) < 2, f"rare-{seed}", draw.choice(["a", "b"], rows))
    return pd.DataFrame(
        {
            "age": age,
            "dose": np.where(draw.random(rows) < 0.3, np.nan, dose),
            "ward": ward,
            "rare": np.where(np.arange(rows) < 2, 5.0, np.nan),
            "outcome": np.where(age + draw.normal(size=rows) > 50 + seed, "ill", "well"),
        }
    )


@pytest.fixture
def tables(field: Any) -> Any:
    """Three silos with tables of their own, and a server with one to test on."""
    made = field()
    for seed, name in enumerate(("north", "south", "west")):
        make_table(seed).to_csv(made.root / name / "table.csv", index=False)
        made.write(name, {"data": "csv:table.csv", "labels": {}, "model": None, "share": SHARE})
    make_table(7).to_csv(made.root / "server.csv", index=False)
    made.study = {
        "data": {
            "source": f"csv:{made.root / 'server.csv'}",
            "table": {"label": "outcome"},
            "classes": ["well", "ill"],
            "test": 0.9,
            "validation": 0,
        },
        "model": {"arch": "linear"},
        "rounds": {"max": 3, "lr": 0.3, "timeout": 5, "quorum": 0.6, "stop": "budget"},
        "arms": ARMS,
    }
    return made


def test_sums_give_every_silo_the_same_columns(tables: Any) -> None:
    record = tables.run("fedavg")
    assert not record.quarantined
    assert record.accuracy_source == "test"
    assert record.silos_get == ()
    reason = "it holds out no examples (data.silo_test)"
    assert record.notes["silos_get"] == f"not measured at north, south, west: {reason}"
    assert record.exchanges_before_round_1 == 1
    assert record.curve[-1].metrics["auroc"] > 0.9
    card = read_card(tables.root / "record" / "fedavg" / CHECKPOINT_FILE, what="model")
    assert card is not None
    assert card.shape.inputs == (6,), "age, dose, two that are missing, and two wards"
    for name in ("north", "south", "west"):
        kinds = [entry["type"] for entry in tables.audit(name)]
        assert kinds[:3] == [keys.DESCRIBE, keys.TABLE_SUMS, keys.DESCRIBE]
        assert set(kinds[3:]) == {keys.TRAIN}, "nothing is held out"
    replies = [
        entry["bytes"] for name in ("north", "south", "west") for entry in tables.audit(name)[:3]
    ]
    assert record.curve[0].bytes_up == sum(replies), "the start is charged with the sums"
    assert record.curve[0].bytes_down > 0
    reply = tables.ask("north", keys.TABLE_SUMS, {}, arm="fedavg")
    told = {each["name"]: each for each in json.loads(reply.content[keys.INFO][keys.COLUMNS])}
    own = pd.read_csv(tables.root / "north" / "table.csv")
    assert told["dose"]["present"] == own["dose"].notna().sum()
    assert told["dose"]["sum"] == pytest.approx(own["dose"].sum())
    assert set(told["ward"]["counts"]) == {"a", "b"}, "a category of two rows is not named"
    assert told["rare"] == {"name": "rare", "present": 0, "sum": 0, "square": 0}


def test_sums_of_great_values_are_taken_and_absurd_ones_are_refused() -> None:
    column = (Column("euros"),)
    great = TableSums(10**6, np.array([1e6]), np.array([1e12]), np.array([1e19]), (np.zeros(0),))
    found = read_reply(write_reply(column, great, least=1), max_examples=10**7)
    assert found[1].squares.tolist() == [1e19]
    for value in (np.nan, np.inf, 1e300):
        absurd = replace(great, squares=np.array([value]))
        with pytest.raises(RefusedError, match="a sum is not finite, or too large"):
            read_reply(write_reply(column, absurd, least=1), max_examples=10**7)


def test_without_consent_no_sums_leave(tables: Any) -> None:
    def withhold(name: str) -> None:
        path = tables.root / name / "silo.yaml"
        path.write_text(path.read_text().replace("table_sums: true", "table_sums: false"))

    withhold("north")
    record = tables.run("fedavg")
    (refused,) = record.quarantined
    assert (refused.silo, refused.round) == ("north", 0)
    assert refused.reason.endswith("(share.table_sums)")
    assert record.curve[-1].silos_ok == 3
    withhold("south")
    with pytest.raises(FedKDError, match="1 of 3 silos share sums of their columns"):
        tables.run("fedavg")
    assert tables.audit("north")[-1]["refused"].endswith("(share.table_sums)")


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        json.dumps({"columns": [["age", None]], "kept": [[]], **{key: [0] for key in ARRAYS}}),
        "[" * 10_000,
    ],
)
def test_columns_that_are_not_the_tables_are_refused(tables: Any, text: str) -> None:
    reply = tables.ask("north", keys.TRAIN, {keys.COLUMNS: text}, arm="fedavg")
    assert reply.has_error()
    assert tables.audit("north")[-1]["sent"] == {}


def test_trees_of_raw_columns_teach_on_an_approved_transfer_set(tables: Any) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from skops.io import dump

    frame = pd.read_csv(tables.root / "north" / "table.csv")
    names = make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["ward"]))
    names.set_params(remainder="passthrough")
    forest = make_pipeline(names, RandomForestClassifier(10, random_state=0))
    dump(forest.fit(frame[["ward", "age"]], frame["outcome"]), tables.root / "north" / "f.skops")
    settings = {"mode": "logits", "student": "fresh", "epochs": 30, "lr": 0.3}
    tables.study["arms"] = {"fedkd": {"start": "consolidated", "consolidation": settings}}
    tables.study["data"] |= {"transfer": {"size": 20}, "test": 0.5}
    tables.study["model"] = {"arch": "linear", "per_silo": {"north": "sklearn"}}
    path = tables.root / "north" / "silo.yaml"
    silo = yaml.safe_load(path.read_text())
    silo |= {"model": {"checkpoint": "f.skops"}, "share": {**SHARE, "teacher": "logits"}}
    path.write_text(yaml.safe_dump(silo))
    with pytest.raises(FedKDError, match="has not approved the transfer set") as refused:
        tables.run("fedkd")
    (told,) = set(re.findall("[0-9a-f]{64}", str(refused.value)))
    silo["approve"] = {"study": "any", "transfer": [told]}
    path.write_text(yaml.safe_dump(silo))
    record = tables.run("fedkd")
    assert record.exchanges_before_round_1 == 2
    assert record.curve[0].metrics["auroc"] > 0.9


def hold_out(tables: Any, share: dict[str, Any]) -> Any:
    """Let the silos hold out a quarter of their rows, own models, and share more.

    Returns:
        The study, with these silos simulated.
    """
    names, checkpoints = ("north", "south", "west"), {}
    shape = Shape.of(2, "table", [5])  # age, dose and whether it is missing, two wards
    for seed, name in enumerate(names):
        own = tables.root / name
        table = make_table(seed).drop(columns="rare").replace(f"rare-{seed}", "a")
        table.to_csv(own / "table.csv", index=False)
        checkpoints[name] = str(own / "own.safetensors")
        save_state(own / "own.safetensors", copy_state(build_model("linear", shape, seed=seed)))
        silo = yaml.safe_load((own / "silo.yaml").read_text())
        silo |= {"model": {"checkpoint": "own.safetensors", "arch": "linear"}}
        silo |= {"share": {**SHARE, **share}}
        (own / "silo.yaml").write_text(yaml.safe_dump(silo))
    server = make_table(7).drop(columns="rare").replace("rare-7", "a")
    server.to_csv(tables.root / "server.csv", index=False)
    tables.study["data"] |= {"silo_test": 0.25, "classes": ["ill", "well"]}
    tables.study |= {"metric": "auroc", "arms": {"average": {"start": "average"}}}
    whole = yaml.safe_load(tables.study_text())
    del whole["data"]["classes"]
    whole["partition"] = {
        "scheme": "given",
        "silos": {name: f"csv:{tables.root / name / 'table.csv'}" for name in names},
    }
    return whole | {"pretraining": {"checkpoints": checkpoints}, "targets": [0.99]}


def test_silos_measure_what_they_get_as_in_a_simulation(tables: Any, tmp_path: Path) -> None:
    share = {"teacher": "weights", "class_counts": True, "min_samples": 1}
    simulated = parse_study(yaml.safe_dump(hold_out(tables, share)))
    record = tables.run("average")
    assert not record.quarantined
    assert "silos_get" not in record.notes
    progress = StudyProgress(Console(quiet=True), 1)
    (run,) = run_study(simulated, out=tmp_path / "runs", fresh=True, progress=progress).summary[
        "runs"
    ]
    assert [point["metrics"] for point in run["curve"]] == [p.metrics for p in record.curve]
    assert list(record.silos_get) == run["silos_get"]
    for gets in record.silos_get:
        assert gets["num_held_out"] == 15
        assert all(gets[model] is not None for model in ("own", "global", "adjusted", "fine_tuned"))
    answer = tables.audit("north")[-1]
    assert answer["type"] == keys.EVALUATE
    assert set(answer["sent"]) == {keys.SILOS_GET, keys.INFO}
    assert answer["sent"][keys.SILOS_GET]["own"] == record.silos_get[0]["own"]


def test_what_silos_get_leaves_with_consent_alone(tables: Any) -> None:
    hold_out(tables, {"teacher": "weights", "metrics": False})
    record = tables.run("average")
    assert not record.quarantined
    assert record.silos_get == ()
    reason = "it does not share metrics (share.metrics), or is of an older version"
    assert record.notes["silos_get"] == f"not measured at north, south, west: {reason}"
    asked = {entry["type"] for entry in tables.audit("north")}
    assert asked == {keys.DESCRIBE, keys.TABLE_SUMS, keys.TEACHER, keys.TRAIN}
    for name in ("north", "south"):
        path = tables.root / name / "silo.yaml"
        path.write_text(path.read_text().replace("metrics: false", "metrics: true"))
    record = tables.run("average")
    assert [gets["silo"] for gets in record.silos_get] == ["north", "south"]
    assert [gets["adjusted"] for gets in record.silos_get] == [None, None], "counts are not shared"
    assert record.notes["silos_get"] == f"not measured at west: {reason}"


def test_a_model_is_measured_with_the_columns_of_its_run(tables: Any, capsys: Any) -> None:
    record = tables.run("fedavg")
    path = tables.root / "record" / "fedavg" / CHECKPOINT_FILE
    make_table(5, rows=20).to_csv(tables.root / "north" / "table.csv", index=False)  # others now
    found = evaluate(tables, path, capsys)
    assert found["unmeasured"] == []
    rows = {row["silo"]: row for row in found["measured"]}
    assert rows[None]["accuracy"] == record.curve[-1].accuracy
    assert [rows[name]["num_examples"] for name in ("north", "south", "west")] == [20, 60, 60]
    card = read_card(path, what="model")
    assert card is not None
    encoder = Encoder.from_json(card.columns)
    source = read_table(f"csv:{tables.root}/north/table.csv", Table(label="outcome"))
    encoded = encoder.encode(align(source.train, source.columns, encoder.columns))
    with torch.no_grad():
        logits = rebuild("linear", card.shape, load_file(path))(encoded.images)
    right = logits.argmax(1) == 1 - encoded.labels  # the study names "well" first
    assert rows["north"]["accuracy"] == pytest.approx(float(right.double().mean()))
    save_state(tables.root / "bare.safetensors", load_file(path))
    with pytest.raises(UserError, match="does not say how the columns of a table become inputs"):
        evaluate(tables, tables.root / "bare.safetensors", capsys)


def evaluate(tables: Any, path: Path, capsys: Any) -> dict[str, Any]:
    """Let silos and server measure a model; return what the run's log says."""
    asked = json.dumps([{"name": "m", "path": str(path)}])
    config: Any = {keys.CONFIG_MODELS: asked, keys.CONFIG_TARGETS: ""}
    context = tables.context(1, "north", "fedavg")
    context.run_config |= config
    capsys.readouterr()
    serve_evaluation(tables.grid("fedavg"), context)
    reader = LogReader()
    lines = [reader.read(line) for line in capsys.readouterr().out.splitlines()]
    (found,) = [line[1] for line in lines if line is not None and line[0] == "evaluation"]
    return dict(found)


def test_the_bundles_app_takes_every_message_of_the_contract() -> None:
    from clients import client_app, handlers

    assert set(client_app.app._registered_funcs) == set(handlers.app._registered_funcs)
