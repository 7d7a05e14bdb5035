"""Models of other libraries: trained, read from their own files, refused, and as teachers."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

import fedkd
from fedkd.config.study_file import check_files, resolve_study
from fedkd.data.images import Images
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.federation.silos_get import SilosGet
from fedkd.models.build import Shape, build_model
from fedkd.models.external import LEAST_PROBABILITY, read_external
from fedkd.registry import EXTERNAL_CLASSES
from fedkd.training.external import CannotLearnError, train_external
from fedkd.util.checkpoint_files import EXTERNAL_FORMATS

ALL = [f"{library}:{name}" for library, names in EXTERNAL_CLASSES.items() for name in names]
LIBRARIES = [f"{library}:{next(iter(names))}" for library, names in EXTERNAL_CLASSES.items()]
SHAPE = Shape.of(2, "table", [3])


def make_rows(count: int = 80, classes: tuple[int, ...] = (0, 1)) -> Images:
    """Rows of three numbers, whose class is the sign of the first."""
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, 3, generator=draw)
    return Images(inputs, torch.tensor(classes)[(inputs[:, 0] > 0).long()])


def field(number: int, value: int | bytes) -> bytes:
    """Write a field of a protocol buffer; numbers below 128, texts below 16,384 bytes."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value) & 127 | 128, len(value) >> 7]) + value


def onnx_linear(weights: torch.Tensor) -> bytes:
    """Write an ONNX model whose logits ``[N, C]`` are inputs times weights ``[F, C]``."""
    rows, columns = weights.shape

    def value(name: bytes, width: int) -> bytes:
        dims = field(1, field(2, b"N")) + field(1, field(1, width))
        return field(1, name) + field(2, field(1, field(1, 1) + field(2, dims)))

    raw = weights.float().numpy().tobytes()
    tensor = field(1, rows) + field(1, columns) + field(2, 1) + field(8, b"w") + field(9, raw)
    node = field(1, b"x") + field(1, b"w") + field(2, b"y") + field(4, b"MatMul")
    graph = field(1, node) + field(2, b"g") + field(5, tensor)
    graph += field(11, value(b"x", rows)) + field(12, value(b"y", columns))
    return field(1, 8) + field(7, graph) + field(8, field(2, 13))


WEIGHTS = torch.tensor([[-2.0, 2.0], [0.0, 0.5], [0.1, 0.0]])


@pytest.mark.parametrize("arch", ALL)
def test_training_is_exact_and_its_state_predicts(arch: str) -> None:
    data = make_rows()
    state = train_external(arch, data, seed=3)
    again = train_external(arch, data, seed=3)
    assert all(torch.equal(state[key], again[key]) for key in state)
    model = build_model(arch, SHAPE, seed=0)
    model.load_state_dict(state)
    logits = model(data.images)
    assert logits.shape == (80, 2)
    assert float((logits.argmax(1) == data.labels).double().mean()) > 0.9
    assert torch.allclose(logits.exp().sum(1), torch.ones(80), atol=1e-3)
    assert torch.equal(model(data.images[7:8]), logits[7:8])


def test_classes_that_a_silo_lacks_get_the_least_probability() -> None:
    state = train_external("sklearn:LogisticRegression", make_rows(classes=(2, 0)), seed=0)
    model = build_model("sklearn:LogisticRegression", Shape.of(4, "table", [3]), seed=0)
    model.load_state_dict(state)
    probabilities = model(torch.tensor([[-5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])).exp()
    assert probabilities.argmax(1).tolist() == [2, 0]
    assert torch.allclose(probabilities[:, [1, 3]], torch.tensor(LEAST_PROBABILITY))
    with pytest.raises(CannotLearnError, match="are of one class, from which sklearn:Logistic"):
        train_external("sklearn:LogisticRegression", make_rows(classes=(1, 1)), seed=0)


@pytest.mark.parametrize("arch", LIBRARIES)
def test_a_file_of_each_library_predicts_as_there(arch: str, tmp_path: Path) -> None:
    library = arch.partition(":")[0]
    data, path = make_rows(), tmp_path / f"model{EXTERNAL_FORMATS[library][0][0]}"
    state = train_external(arch, data, seed=0)
    path.write_bytes(state["file"].numpy().tobytes())
    read = read_external(path, SHAPE, ["a", "b"], what="model")
    assert all(torch.equal(state[key], read[key]) for key in state)
    if library == "xgboost":  # as LightGBM; the others say which classes they have
        with pytest.raises(UserError, match=r"^model: .* predicts 2 classes, but the study has 3$"):
            read_external(path, Shape.of(3, "table", [3]), ["a", "b", "c"], what="model")
    content = path.read_bytes()
    for cut in (40, len(content) // 2):
        path.write_bytes(content[:cut])
        with pytest.raises(
            UserError, match=r"^model: .* (cannot be used as a model of|is damaged)"
        ):
            read_external(path, SHAPE, ["a", "b"], what="model")
    if library == "xgboost":  # a name longer than all memory
        path.write_bytes(b"{L" + (1 << 60).to_bytes(8, "big"))
        with pytest.raises(UserError, match="is damaged: XGBoost cannot read it; copy it again"):
            read_external(path, SHAPE, ["a", "b"], what="model")
    path.write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="is a pickle, which runs code when it is read"):
        read_external(path, SHAPE, ["a", "b"], what="model")


def test_an_onnx_file_gives_its_logits(tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", make_rows()
    path.write_bytes(onnx_linear(WEIGHTS))
    model = build_model("onnx", SHAPE, seed=0)
    model.load_state_dict(read_external(path, SHAPE, ["a", "b"], what="model"))
    expected = functional.log_softmax(data.images.double() @ WEIGHTS.double(), 1)
    assert torch.allclose(model(data.images).double(), expected, atol=1e-4)
    for shape, classes, said in (
        (Shape.of(3, "table", [3]), "abc", "predicts 2 classes, but the study has 3"),
        (Shape.of(2, "table", [4]), "ab", "cannot be used as a model of onnx on rows of 4: "),
    ):
        with pytest.raises(UserError, match=f"^model: .*model.onnx {said}"):
            read_external(path, shape, list(classes), what="model")


def test_classes_are_found_by_name_and_strange_types_are_refused(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from skops.io import dump

    data, path = make_rows(), tmp_path / "model.skops"
    names = np.array(["well", "ill"])[data.labels.numpy()]
    dump(LogisticRegression().fit(data.images.numpy(), names), path)
    state = read_external(path, SHAPE, ["well", "sick"], what="m", labels={"ill": "sick"})
    assert state["classes"].tolist() == [1, 0]
    with pytest.raises(UserError, match="predicts the classes ill, well, but the study has no, ye"):
        read_external(path, SHAPE, ["no", "yes"], what="m")
    strange = make_pipeline(FunctionTransformer(make_rows), LogisticRegression())
    dump(strange, path)
    with pytest.raises(UserError, match="which is not loaded: only estimators of scikit-learn"):
        read_external(path, SHAPE, ["no", "yes"], what="m")


def make_study(**changes: Any) -> dict[str, Any]:
    arm = {"mode": "logits", "student": "fresh", "epochs": 20, "lr": 0.1}
    study: dict[str, Any] = {
        "name": "teachers",
        "data": {"source": "sklearn:breast_cancer", "transfer": {"size": 60}, "train_size": 240},
        "partition": {"scheme": "iid", "silos": 3},
        "model": {"arch": "linear", "per_silo": {"silo-0": "xgboost:XGBClassifier"}},
        "pretraining": {"epochs": 5, "lr": 0.1},
        "rounds": {"max": 1, "lr": 0.1},
        "metric": "auroc",
        "targets": [0.999],
        "arms": {"fedkd": {"start": "consolidated", "consolidation": arm}},
        "seeds": [0],
    }
    return {**study, **changes}


def test_a_study_learns_from_files_and_trained_trees(tmp_path: Path, cache_dir: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_linear(torch.zeros(30, 2)))  # it says the same of all rows
    study = make_study(pretraining={"epochs": 5, "checkpoints": {"silo-1": str(path)}})
    comparison = fedkd.compare(study, out=tmp_path / "out")
    (run,) = comparison.summary["runs"]
    assert not run["quarantined"]
    assert run["curve"][0]["metrics"]["auroc"] > 0.9
    own = {each["silo"]: each["own"] for each in run["silos_get"]}
    assert own["silo-0"] > 0.9
    assert own["silo-1"] == 0.5
    resolved = resolve_study(study)
    assert resolved.model.per_silo["silo-1"] == "onnx"
    assert resolve_study(resolved.to_dict()) == resolved
    federation = Federation.load(resolved, 0, cache_dir)
    stored = federation.pretrained("silo-0").state
    assert stored is not None
    assert torch.equal(stored["file"], federation._train_model("silo-0")["file"])


def test_silos_below_the_least_size_have_no_model(tmp_path: Path) -> None:
    study = make_study(pretraining={"epochs": 1, "min_size": 10_000})
    federation = Federation.load(resolve_study(study), 0, tmp_path)
    assert federation.pretrained("silo-1").state is None
    assert "fewer than 10000 examples" in federation.pretrained("silo-1").problem


WEIGHTS_MODE = {"start": "consolidated", "consolidation": {"student": "fresh"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"arch": "sklearn:MLPClassifier"}}, "model.arch: .* only predicts"),
        ({"model": {"per_silo": {"silo-0": "sklearn:SVC"}}}, "sklearn has no classifier 'SVC'"),
        ({"model": {"per_silo": {"silo-0": "onnx"}}}, "name it in pretraining.checkpoints.silo-0"),
        ({"arms": {"a": {"start": "average"}}}, "a.start: average needs the weights of the silos'"),
        ({"arms": {"fedkd": WEIGHTS_MODE}}, "consolidation.mode: the model of silo-0 is of xgboo"),
        ({"pretraining": {"checkpoints": {"silo-0": "model.cbm"}}}, "is not a file of xgboost:XGB"),
        ({"pretraining": {"checkpoints": {"silo-0": "m.pt"}}}, "is not a file of xgboost:XGBClas"),
    ],
)
def test_studies_that_models_without_weights_do_not_fit(changes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_study(make_study(**changes))


def test_a_pickle_and_a_missing_package_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps([]))
    study = make_study(pretraining={"checkpoints": {"silo-1": str(path)}}, model={"arch": "linear"})
    with pytest.raises(UserError, match=r"silo-1: .*model.pkl is a pickle, which runs code"):
        check_files(resolve_study(study))
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(UserError, match=r"XGBClassifier needs xgboost, .*: pip install .*xgboost"):
        fedkd.compare(make_study(), out=tmp_path / "out")


def test_what_silos_get_may_be_unknown_and_the_run_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise UserError("it cannot be measured")

    monkeypatch.setattr(SilosGet, "measure", fail)
    study = make_study(model={"arch": "linear"}, arms={"fedavg": {"start": "random"}})
    summary = fedkd.compare(study, out=tmp_path).summary
    assert not summary["failures"]
    (run,) = summary["runs"]
    assert run["silos_get"] == []


def test_a_model_of_named_columns_gets_the_table_as_it_was(tmp_path: Path) -> None:
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    from skops.io import dump

    draw = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": draw.integers(20, 90, 400).astype(float),
            "sex": draw.choice(["f", "m"], 400),
            "dose": np.where(draw.random(400) < 0.2, np.nan, draw.normal(300, 0.5, 400).round(2)),
            "site": draw.choice(["north", "south"], 400),
        }
    )
    table["outcome"] = np.where(table["age"] + 20 * (table["sex"] == "m") > 63, "ill", "well")
    table.to_csv(tmp_path / "table.csv", index=False)
    columns = ["sex", "age", "dose"]  # in an order of the model's own
    names = make_column_transformer((OneHotEncoder(), ["sex"]), remainder="passthrough")
    model = make_pipeline(names, HistGradientBoostingClassifier())
    dump(model.fit(table[columns], table["outcome"]), tmp_path / "model.skops")
    study = make_study(
        data={
            "source": f"csv:{tmp_path / 'table.csv'}",
            "table": {"label": "outcome", "silo": "site"},
            "transfer": {"size": 40},
        },
        partition={"scheme": "by-column"},
        model={"arch": "linear"},
        pretraining={"checkpoints": {"north": str(tmp_path / "model.skops")}},
    )
    federation = Federation.load(resolve_study(study), 0, tmp_path)
    split, state = federation.split, federation.pretrained("north").state
    assert split.encoder is not None
    assert state is not None
    own = build_model("sklearn", federation.shape, seed=0)
    own.load_state_dict(state)
    inputs = split.silos[1].images
    decoded = pd.DataFrame(split.encoder.decode(inputs.numpy()))
    south = table[table["site"] == "south"]
    both = [tuple(row) for row in decoded[["age", "dose", "sex"]].fillna(-1).to_numpy()]
    assert set(both) <= {tuple(row) for row in south[["age", "dose", "sex"]].fillna(-1).to_numpy()}
    expected = np.log(np.clip(model.predict_proba(decoded[columns]), LEAST_PROBABILITY, 1))
    assert np.allclose(own(inputs).numpy(), expected, atol=1e-6)
    assert torch.equal(own(inputs).argmax(1), split.silos[1].labels)


@pytest.mark.slow
@pytest.mark.ray
def test_ray_gives_the_same_curve(tmp_path: Path) -> None:
    curves = []
    for engine in ("inline", "ray"):
        study = make_study(engine={"name": engine}, partition={"scheme": "iid", "silos": 2})
        (run,) = fedkd.compare(study, out=tmp_path / engine, fresh=True).summary["runs"]
        curves.append([{**point, "seconds": None} for point in run["curve"]])
    assert curves[0] == curves[1]
