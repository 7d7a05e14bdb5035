"""Deployed silos with tables: sums of columns leave with consent alone, and all encode alike."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from fedkd.data.columns import Column, TableSums
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.table_sums import read_reply, write_reply
from fedkd.messages.validate import RefusedError
from fedkd.models.card import read_card
from fedkd.results.record import CHECKPOINT_FILE

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
    assert record.notes["silos_get"].startswith("not measured: the server of deployed silos has")
    assert record.exchanges_before_round_1 == 1
    assert record.curve[-1].metrics["auroc"] > 0.9
    card = read_card(tables.root / "record" / "fedavg" / CHECKPOINT_FILE, what="model")
    assert card is not None
    assert card.shape.inputs == (6,), "age, dose, two that are missing, and two wards"
    for name in ("north", "south", "west"):
        kinds = [entry["type"] for entry in tables.audit(name)]
        assert kinds[:3] == [keys.DESCRIBE, keys.TABLE_SUMS, keys.DESCRIBE]
        assert set(kinds[3:]) == {keys.TRAIN}
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


def test_the_bundles_app_takes_every_message_of_the_contract() -> None:
    from clients import client_app, handlers

    assert set(client_app.app._registered_funcs) == set(handlers.app._registered_funcs)
