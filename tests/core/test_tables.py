"""Tables and other examples that are no images: sources, columns, refusals, and a whole study."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import RecordDict

import fedkd
from fedkd.config import Familiarity, Study
from fedkd.config.study_file import resolve_study
from fedkd.config.table import Table
from fedkd.data.alignment import align, unite_columns
from fedkd.data.columns import Column, Encoder, fit_encoder, sums_of
from fedkd.data.images import Images, as_inputs, content_hash
from fedkd.data.sources import load_source
from fedkd.distillation.density.basis import InputBasis, make_basis
from fedkd.errors import UserError
from fedkd.federation.check import check_study
from fedkd.federation.describe_data import describe_data
from fedkd.federation.federation import Federation
from fedkd.federation.split import Split, load_split
from fedkd.messages.basis import read_basis, write_basis
from fedkd.models.build import Shape, build_model
from fedkd.models.card import ModelCard, save_model
from fedkd.models.state import copy_state
from fedkd.runner.evaluate import evaluate_models
from fedkd.training.compute import Compute


def make_frame(rows: int = 240) -> pd.DataFrame:
    """A table of three hospitals: two numbers, one with gaps, a name, and a class of both."""
    draw = np.random.default_rng(0)
    age, dose = draw.normal(50, 10, rows), draw.normal(size=rows)
    sick = age / 10 - 5 + dose + 0.3 * draw.normal(size=rows) > 0
    return pd.DataFrame(
        {
            "age": age,
            "dose": np.where(draw.random(rows) < 0.2, np.nan, dose),
            "sex": draw.choice(["f", "m"], rows),
            "site": draw.choice(["North 1", "South", "West"], rows),
            "outcome": np.where(sick, "ill", "well"),
        }
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tables") / "patients.csv"
    make_frame().to_csv(file, index=False)
    return file


def make_study(path: Path, **changes: Any) -> dict[str, Any]:
    study: dict[str, Any] = {
        "name": "patients",
        "data": {
            "source": f"csv:{path}",
            "table": {"label": "outcome", "silo": "site"},
            "transfer": {"size": 40},
        },
        "partition": {"scheme": "by-column"},
        "model": {"arch": "linear"},
        "pretraining": {"epochs": 5, "lr": 0.1},
        "rounds": {"max": 2, "lr": 0.1, "stop": "budget"},
        "targets": [0.99],
        "arms": {"fedavg": {"start": "random"}},
        "seeds": [0],
    }
    return {**study, **changes}


def load(path: Path, **changes: Any) -> tuple[Study, Split]:
    study = resolve_study(make_study(path, **changes))
    return study, load_split(study, 0)


def arm_of(**consolidation: Any) -> dict[str, Any]:
    settings = {"student": "fresh", "epochs": 5, "lr": 0.1, "weighting": "familiarity"}
    return {"start": "consolidated", "consolidation": {**settings, **consolidation}}


LDA_HEAD = arm_of(
    student="lda-head",
    teachers="densities",
    epochs=0,
    familiarity={"density": "pooled", "basis": "inputs"},
)

OWN = {"fedavg-average": {"start": "average"}}


# Examples of any kind.


def test_kinds_of_examples() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    kinds = {
        "image": torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        "table": torch.zeros(2, 3),
        "text": torch.zeros(2, 3, dtype=torch.int64),
        "tensor": torch.zeros(2, 3, 4),
    }
    for kind, stored in kinds.items():
        assert Images(stored, labels).kind == kind
        assert as_inputs(stored).dtype == (torch.int64 if kind == "text" else torch.float32)
    with pytest.raises(ValueError, match="examples must be"):
        Images(torch.zeros(2, 3, dtype=torch.int32), labels)


def test_hashes_tell_types_shapes_and_values_apart() -> None:
    labels, table = torch.zeros(2, dtype=torch.int64), torch.arange(12.0).reshape(2, 6)
    others = [table.reshape(2, 2, 3), table + 1, table.long()]
    assert len({content_hash(each) for each in (table, *others)}) == 4
    assert len({Images(each, labels).digest for each in (table, *others)}) == 4
    view = Images(torch.cat([table, table + 1]), labels, torch.tensor([0, 1]))
    assert view.digest == Images(table, labels).digest
    assert content_hash(view) == content_hash(table)


def test_npz_holds_inputs_of_any_kind(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {
        "table": np.random.default_rng(0).normal(size=(6, 3)),
        "tensor": np.zeros((6, 2, 5), np.float16),
        "text": np.ones((6, 7), np.int32),
    }
    for kind, inputs in kinds.items():
        np.savez(tmp_path / f"{kind}.npz", inputs=inputs, labels=np.arange(6) % 2)
        source = load_source(f"npz:{tmp_path / kind}.npz")
        assert (source.kind, source.train.shape) == (kind, inputs.shape)
        with pytest.raises(UserError, match=f"examples of the kind {kind}"):
            _ = source.image_size
    bad = {"not finite numbers from -1e.18": (np.nan, 1e300), "not token ids from 0": (-1, 2**63)}
    for message, values in bad.items():
        for value in values:
            np.savez(tmp_path / "bad.npz", inputs=np.array([[value]]), labels=[0])
            with pytest.raises(UserError, match=message):
                load_source(f"npz:{tmp_path / 'bad.npz'}")


def test_study_of_tensors_runs(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    labels = np.arange(200) % 2
    inputs = draw.normal(size=(200, 2, 5)) + labels[:, None, None]
    np.savez(tmp_path / "signals.npz", inputs=inputs, labels=labels)
    study = make_study(
        tmp_path,
        data={"source": f"npz:{tmp_path / 'signals.npz'}", "transfer": {"size": 40}},
        partition={"scheme": "iid", "silos": 2},
        model={"arch": "mlp"},
        arms={"fedavg": {"start": "random"}, "fedkd": arm_of(familiarity={"basis": "inputs"})},
    )
    comparison = fedkd.compare(study, out=tmp_path / "out")
    runs = {run["arm"]: run for run in comparison.summary["runs"]}
    assert runs["fedavg"]["exchanges_before_round_1"] == 0
    assert runs["fedkd"]["curve"][0]["accuracy"] > 0.8


# Columns.


def test_columns_are_standardized_by_sums_of_training_rows_alone(path: Path) -> None:
    _, split = load(path)
    assert split.encoder is not None
    assert split.encoder.names == ("age", "dose", "dose missing", "sex=f", "sex=m")
    trained = torch.cat([part.images for part in split.silos])
    assert abs(float(trained[:, 0].mean())) < 1e-6
    assert abs(float(trained[:, 0].std(unbiased=False)) - 1) < 1e-6
    gaps = trained[:, 2] == 1
    assert 0 < int(gaps.sum()) < len(gaps)
    assert float(trained[gaps, 1].abs().max()) == 0
    assert torch.equal(trained[:, 3] + trained[:, 4], torch.ones(len(trained)))
    whole = make_frame()["age"]
    assert split.encoder.means[0] != pytest.approx(whole.mean(), abs=1e-6)


def test_statistics_may_come_from_the_transfer_set(path: Path) -> None:
    data = make_study(path)["data"]
    table = {**data["table"], "statistics": "transfer"}
    study, split = load(path, data={**data, "table": table})
    assert study.exchanges_before_round_1("fedavg") == 0
    assert split.transfer is not None
    assert abs(float(split.transfer.images[:, 0].mean())) < 1e-6


def test_sums_of_silos_are_those_of_all_rows() -> None:
    columns = (Column("x"), Column("c", ("a", "b")))
    values = torch.tensor([[1.0, 0], [np.nan, 1], [3.0, np.nan]], dtype=torch.float64)
    rows = Images(values, torch.zeros(3, dtype=torch.int64))
    added = sums_of(rows.take([0]), columns) + sums_of(rows.take([1, 2]), columns)
    whole = sums_of(rows, columns)
    for one, other in ((added.present, whole.present), (added.squares, whole.squares)):
        assert np.array_equal(one, other)
    assert [count.tolist() for count in added.counts] == [[], [1, 1]]
    encoder = fit_encoder(columns, added)
    assert (encoder.means[0], encoder.deviations[0]) == (2, 1)


def test_unseen_categories_are_zeros_and_constants_are_left_out() -> None:
    columns = (Column("c", ("a", "b")), Column("same"))
    train = torch.tensor([[0, 2013.1], [0, 2013.1], [0, 2013.1]], dtype=torch.float64)
    test = torch.tensor([[1, 5.0]], dtype=torch.float64)
    labels = torch.zeros(3, dtype=torch.int64)
    encoder = fit_encoder(columns, sums_of(Images(train, labels), columns))
    assert encoder.names == ("c=a",)
    assert encoder.encode(Images(test, labels[:1])).images.tolist() == [[0]]


def test_columns_of_other_tables_are_found_by_name() -> None:
    wanted = unite_columns(
        [("a", (Column("x"), Column("c", ("p",)))), ("b", (Column("c", ("q",)), Column("x")))]
    )
    assert wanted == (Column("x"), Column("c", ("p", "q")))
    rows = Images(torch.tensor([[0.0, 7.0]], dtype=torch.float64), torch.zeros(1).long())
    moved = align(rows, (Column("c", ("q",)), Column("x")), wanted)
    assert moved.images.tolist() == [[7, 1]]
    with pytest.raises(UserError, match="b lacks 'c'"):
        unite_columns([("a", (Column("x"), Column("c"))), ("b", (Column("x"),))])
    with pytest.raises(UserError, match="numbers in one table and text in another"):
        unite_columns([("a", (Column("x"),)), ("b", (Column("x", ("1",)),))])


# Studies.


def test_silos_are_named_by_the_column(path: Path) -> None:
    study, split = load(path)
    assert study.silo_names == ("North-1", "South", "West")
    used = [*split.silos, split.test, split.validation]
    assert split.transfer is not None
    assert sum(map(len, used)) + len(split.transfer) == 240
    assert split.shape == Shape.of(2, "table", [5])


def test_table_study_runs_and_every_arm_pays_for_the_sums(path: Path, tmp_path: Path) -> None:
    arms = {
        "fedavg": {"start": "random"},
        "fedkd": arm_of(familiarity={"basis": "inputs"}),
        "control-lda-head": LDA_HEAD,
    }
    comparison = fedkd.compare(make_study(path, arms=arms), out=tmp_path / "out")
    runs = {run["arm"]: run for run in comparison.summary["runs"]}
    assert {name: run["exchanges_before_round_1"] for name, run in runs.items()} == {
        "fedavg": 1,
        "fedkd": 2,
        "control-lda-head": 2,
    }
    assert runs["control-lda-head"]["curve"][0]["accuracy"] > 0.85


def test_a_parquet_file_is_the_same_table(path: Path, tmp_path: Path) -> None:
    pd.read_csv(path).to_parquet(tmp_path / "patients.parquet")
    table = Table(label="outcome", silo="site")
    one = load_source(f"csv:{path}", columns=table)
    other = load_source(f"parquet:{tmp_path / 'patients.parquet'}", columns=table)
    assert one.columns == other.columns
    assert one.train.digest == other.train.digest


def test_scikit_learns_tables() -> None:
    source = load_source("sklearn:breast_cancer")
    assert (source.train.shape, source.classes) == ((569, 30), ("benign", "malignant"))
    with pytest.raises(UserError, match="scikit-learn's tables are breast_cancer"):
        load_source("sklearn:diabetes")


def test_silos_may_have_tables_of_their_own(path: Path, tmp_path: Path) -> None:
    whole = make_frame()
    files = {"north": whole[:80], "south": whole[80:160].iloc[:, ::-1]}
    for silo, rows in files.items():
        rows.to_csv(tmp_path / f"{silo}.csv", index=False)
    whole[160:].to_csv(tmp_path / "server.csv", index=False)
    data = make_study(path)["data"]
    given = {
        "data": {**data, "source": f"csv:{tmp_path / 'server.csv'}"},
        "partition": {
            "scheme": "given",
            "silos": {silo: f"csv:{tmp_path / silo}.csv" for silo in files},
        },
    }
    _, split = load(path, **given)
    assert split.encoder is not None
    assert split.encoder.names == ("age", "dose", "dose missing", "sex=f", "sex=m")
    assert [len(part) for part in split.silos] == [80, 80]
    files["south"].drop(columns="dose").to_csv(tmp_path / "south.csv", index=False)
    with pytest.raises(UserError, match=r"partition.silos: .* lacks 'dose'"):
        load(path, **given)


def test_validation_says_what_is_done_to_each_column(path: Path, tmp_path: Path) -> None:
    study = resolve_study(make_study(path))
    lines = "\n".join(describe_data(Federation.load(study, 0, tmp_path)))
    assert "columns, by sums of the silos: 3 become 5" in lines
    assert re.search(r"dose +numbers, \d+\.\d% missing +\(value - .*the mean where missing", lines)
    assert re.search(r"sex +2 categories +2 columns of 0 and 1", lines)
    assert re.search(r"first rows:\n +age +dose sex\n0 +\d+\.\d+ +\S+ +[fm]\n1 ", lines)
    assert "pixels" not in lines


# Refusals.


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"silo": "site"}, "data.table.label: is missing"),
        ({"label": "sickness"}, "data.table.label: there is no column 'sickness'"),
        ({"label": "age"}, "column 'age' has fractions .* continuous"),
        ({"label": "same"}, "column 'same' is constant"),
        ({"label": "number"}, "5000 different values, more than the 1000 classes"),
        ({"label": "outcome", "silo": "number"}, "5000 different values, more than 1000 silos"),
        ({"label": "outcome", "drop": ["x"]}, "data.table.drop: there is no column 'x'"),
        ({"label": "gaps"}, "column 'gaps' is empty in 1 of 5000 rows"),
        ({"label": "outcome", "drop": ["outcome"]}, "is named as silo or to be dropped too"),
        ({"label": "outcome", "silo": "outcome"}, "is named as silo or to be dropped too"),
    ],
)
def test_unusable_columns_are_refused(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    frame = make_frame(5000).assign(same=1, number=np.arange(5000), gaps="a")
    frame.loc[7, "gaps"] = None
    frame.to_csv(tmp_path / "bad.csv", index=False)
    data = {"source": f"csv:{tmp_path / 'bad.csv'}", "table": table}
    with pytest.raises(UserError, match=message):
        load(tmp_path, data=data)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, 1e39], "values as large as 1e.39; replace or drop those beyond 1e.18"),
        ([1.0, -np.inf], "values as large as inf"),
        ([b"a", b"\xff"], "column 'x' has values of type bytes; turn it into numbers or text"),
        ([[1, 2], [3]], "column 'x' has values of type ndarray"),
        ([{"k": 1}, {"k": 2}], "column 'x' has values of type dict"),
        (pd.to_datetime(["2020-01-01", "2021-01-01"]), "values of type datetime64"),
        ([date(2020, 1, 1), date(2021, 1, 1)], "values of type date"),
    ],
)
def test_values_that_are_neither_numbers_nor_text_are_refused(
    tmp_path: Path, values: Any, message: str
) -> None:
    file = tmp_path / "bad.parquet"
    pd.DataFrame({"x": values, "y": ["a", "b"]}).to_parquet(file)
    with pytest.raises(UserError, match=message):
        load_source(f"parquet:{file}", columns=Table(label="y"))
    if "bytes" in message or "date" in message:
        with pytest.raises(UserError, match=message):
            load_source(f"parquet:{file}", columns=Table(label="x"))


def test_decimals_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "decimals.parquet"
    pd.DataFrame({"x": [Decimal("1.5"), None], "y": ["a", "b"]}).to_parquet(file)
    source = load_source(f"parquet:{file}", columns=Table(label="y"))
    assert source.columns == (Column("x"),)
    assert source.train.images[0, 0] == 1.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;y\n1;2\n3;4\n", "its fields seem to be separated by ';', not ','"),
        ("ä,y\n1,2\n3,4\n", "is not text in UTF-8; save it in that encoding"),
    ],
)
def test_other_forms_of_csv_are_told(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(text, "latin-1")
    with pytest.raises(UserError, match=message):
        load_source(f"csv:{file}", columns=Table(label="y"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"fedkd": arm_of()}}, "basis: pixels is not for examples of kind table; use"),
        (
            {"arms": {"fedkd": arm_of(familiarity={"basis": "inputs"}, mixed_inputs=2)}},
            "mixed_inputs: 2 is for images",
        ),
        ({"pretraining": {"augment": "flip-crop"}}, "pretraining.augment: flip-crop is for images"),
        ({"data": {"image_size": 8}}, "data.image_size: 8 is for images"),
        ({"data": {"transfer": {"source": "noise"}}}, "data.transfer.source: noise is for images"),
        ({"data": {"transfer": {"source": "digits"}}}, "digits is not a table"),
        ({"partition": {"scheme": "deployed", "names": ["a"]}}, "data.classes: is missing"),
    ],
)
def test_settings_of_images_are_refused(path: Path, changes: dict[str, Any], message: str) -> None:
    study = make_study(path)
    if "data" in changes:
        changes = {"data": {**study["data"], **changes["data"]}}
    with pytest.raises(UserError, match=message):
        resolve_study({**study, **changes})


def test_models_of_images_are_refused(path: Path, tmp_path: Path) -> None:
    study = make_study(path, model={"arch": "cnn"})
    with pytest.raises(UserError, match=r"model.arch: cnn does not take rows.*use mlp or linear"):
        fedkd.compare(study, out=tmp_path)


@pytest.mark.parametrize("used", ["start", "own", "evaluate"])
def test_a_model_of_other_columns_is_refused(path: Path, tmp_path: Path, used: str) -> None:
    file = tmp_path / "model.safetensors"

    def use(columns: Encoder) -> list[str]:
        """Save a model of these columns, and return what is said where the study uses it."""
        shape = Shape.of(2, "table", [len(columns.names)])
        card = ModelCard("linear", shape, columns=columns.to_json())
        save_model(file, copy_state(build_model("linear", shape, seed=0)), card)
        changes: dict[str, Any] = {}
        if used == "start":
            changes["arms"] = {"warm": {"start": "checkpoint", "checkpoint": str(file)}}
        if used == "own":
            changes = {"pretraining": {"checkpoints": {"South": str(file)}}, "arms": OWN}
        study = resolve_study(make_study(path, **changes))
        said: list[str] = []
        if used == "evaluate":
            evaluate_models(study, [file], report=said.append)
        else:
            said += check_study([Federation.load(study, 0, tmp_path)])
        return [text for text in said if "another mean" in text]

    encoder = load(path)[1].encoder
    assert encoder is not None
    assert not use(encoder)
    (warning,) = use(replace(encoder, means=encoder.means + np.array([5.0, 0.0, 0.0])))
    assert f"{file}: age had another mean or deviation where it was trained" in warning
    columns = tuple(replace(c, name=c.name.replace("dose", "height")) for c in encoder.columns)
    message = r"other columns: its input 2 is 'height', that of the study 'dose'"
    with pytest.raises(UserError, match=message):
        use(replace(encoder, columns=columns))
    fewer = Encoder(
        encoder.columns[:1],
        *(each[:1] for each in (encoder.means, encoder.deviations, encoder.kept, encoder.missing)),
    )
    with pytest.raises(UserError, match=r"its input 2 is missing, that of the study 'dose'"):
        use(fewer)


def test_a_table_is_not_cut_for_other_sources(path: Path) -> None:
    study = make_study(path)
    with pytest.raises(UserError, match=r"data.table: .*digits is not a table"):
        resolve_study({**study, "data": {**study["data"], "source": "digits"}})
    del study["data"]["table"]
    with pytest.raises(UserError, match="by-column needs a table"):
        resolve_study({**study, "data": {"source": "digits"}})


def test_images_have_no_basis_of_inputs() -> None:
    arms = {"fedkd": arm_of(familiarity={"basis": "inputs"})}
    study = {"name": "digits", "targets": [0.9], "arms": arms}
    with pytest.raises(UserError, match="basis: inputs is for tables"):
        load_split(resolve_study(study), 0)


# Models and bases.


def test_models_of_any_shape() -> None:
    table, images = Shape.of(3, "table", [7]), Shape(3, 1, 4)
    for shape in (table, images):
        for arch in ("linear", "mlp"):
            assert build_model(arch, shape, seed=0)(shape.zeros(2)).shape == (2, 3)
    assert str(table) == "rows of 7"
    card = ModelCard("linear", table, ("a", "b", "c"))
    assert ModelCard.from_metadata(card.to_metadata()) == card
    broken = {"fedkd": card.to_metadata()["fedkd"].replace("[7]", "[0]")}
    with pytest.raises(ValueError, match="inputs must be whole numbers"):
        ModelCard.from_metadata(broken)


def test_a_basis_of_inputs_is_whitened_bounded_and_the_same_on_every_silo() -> None:
    rows = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    basis = make_basis(rows, dims=50, kind="inputs")
    assert isinstance(basis, InputBasis)
    points = basis.project(rows)
    assert torch.allclose(points.T @ points / 59, torch.eye(4, dtype=torch.float64), atol=1e-4)
    assert float(basis.project(1e6 * rows).norm(dim=1).max()) <= basis.max_norm
    record = RecordDict({"basis": write_basis(basis)})
    read = read_basis(
        record, global_arch="linear", shape=Shape.of(2, "table", [4]), compute=Compute()
    )
    assert torch.equal(read.project(rows), points)
    assert Familiarity(basis="inputs").basis == "inputs"
