"""Files of classifiers of other libraries, read into functions that predict, by one thread.

Nothing is unpickled: skops builds the types of scikit-learn and NumPy alone.
"""

from __future__ import annotations

import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from fedkd.data.columns import Encoder
from fedkd.errors import UserError
from fedkd.models.libraries import require
from fedkd.util.checkpoint_files import MAX_EXTERNAL_BYTES

_SKOPS_TYPES = [
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
]
"""Built beside the types that skops trusts itself: estimators of scikit-learn, arrays of NumPy."""
_TOLERANCE = 1e-3
_READ_LIGHTGBM = """
import sys
sys.modules.update(dict.fromkeys(("pandas", "sklearn", "matplotlib", "pyarrow", "dask")))
import lightgbm
lightgbm.Booster(model_str=sys.stdin.buffer.read().decode())
"""
"""Reads a file of LightGBM, without what it imports beside and can do without: that takes long."""

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Loaded:
    """A classifier in its library.

    Attributes:
        function: turns inputs ``[N, ...]``, or a table, into class probabilities ``[N, K]``, or
            ``[N]`` of the second of two classes.
        labels: what the classifier calls its classes, in its order; None where its file does not
            say.
        features: names of the columns that it was trained on, if its file says them.
    """

    function: Callable[[Any], Values]
    labels: tuple[str, ...] | None = None
    features: tuple[str, ...] = ()

    def predict(self, inputs: Values, encoder: Encoder | None) -> Values:
        """Return class probabilities, float64 ``[N, K]``, for a study's inputs ``[N, ...]``.

        An encoder turns these back into the columns of the table as it was.

        Raises:
            UserError: it gives something else.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given: Any = inputs
            if encoder is not None:
                import pandas as pd  # which takes as long to import as all of fedkd

                given = pd.DataFrame(encoder.decode(inputs))[list(self.features)]
            found = np.asarray(self.function(given), dtype=np.float64)
        if found.ndim == 1:
            found = np.stack([1 - found, found], axis=1)
        if len(found) != len(inputs) or not _are_probabilities(found):
            raise UserError("does not give the probability of each class; use a classifier")
        return found


def load_external(library: str, content: bytes) -> Loaded:
    """Read a classifier from the content of its file; what its library raises is passed on."""
    load = {
        "onnx": _load_onnx,
        "sklearn": _load_sklearn,
        "xgboost": _load_xgboost,
        "lightgbm": _load_lightgbm,
        "catboost": _load_catboost,
    }[library]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(content)


def _load_sklearn(content: bytes) -> Loaded:
    io = require("skops.io", "sklearn", extra="teachers")
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_EXTERNAL_BYTES:
            raise UserError(f"unpacks to more than {MAX_EXTERNAL_BYTES >> 20} MiB")
    if others := [t for t in io.get_untrusted_types(data=content) if t not in _SKOPS_TYPES]:
        raise UserError(
            f"holds {others[0]}, which is not loaded: only estimators of scikit-learn itself are"
        )
    model = io.loads(content, trusted=_SKOPS_TYPES)
    if not hasattr(model, "predict_proba"):
        raise UserError(f"is a {type(model).__name__}, which gives no probabilities of classes")

    def predict(inputs: Any) -> Values:
        # In float64, as it is trained: solvers of linear models need the digits.
        rows = _rows(inputs).astype(np.float64) if isinstance(inputs, np.ndarray) else inputs
        return np.asarray(model.predict_proba(rows))

    names = getattr(model, "feature_names_in_", ())
    return Loaded(predict, _names(model.classes_), _names(names))


def _load_xgboost(content: bytes) -> Loaded:
    xgboost = require("xgboost", "xgboost", extra="teachers")
    booster = xgboost.Booster()
    try:
        booster.load_model(bytearray(content))
    except xgboost.core.XGBoostError as error:
        if "bad_alloc" not in str(error):
            raise
        # Of a size that a damaged file names, not of what this machine lacks.
        raise UserError("is damaged: XGBoost cannot read it; copy it again") from None
    booster.set_param({"nthread": 1})
    best = booster.attr("best_iteration")
    trees = (0, 0 if best is None else int(best) + 1)
    return Loaded(
        lambda inputs: booster.inplace_predict(
            _rows(inputs), iteration_range=trees, validate_features=False
        ),
        features=_names(booster.feature_names or ()),
    )


def check_readable(library: str, content: bytes) -> None:
    """Refuse a damaged file with which its library would end this process.

    Of all these libraries LightGBM alone does: its threads abort, or read what is not there.
    """
    if library == "lightgbm":
        tried = subprocess.run(  # noqa: S603 -- the code above, with the file as its input
            [sys.executable, "-P", "-c", _READ_LIGHTGBM],
            input=content,
            capture_output=True,
            check=False,
        )
        if tried.returncode:
            raise UserError("is damaged: LightGBM cannot read it; copy it again")


def _load_lightgbm(content: bytes) -> Loaded:
    lightgbm = require("lightgbm", "lightgbm", extra="teachers")
    booster = lightgbm.Booster(model_str=content.decode())
    return Loaded(
        lambda inputs: booster.predict(_rows(inputs), num_threads=1),
        features=_names(booster.feature_name()),
    )


def _load_catboost(content: bytes) -> Loaded:
    model = require("catboost", "catboost", extra="teachers").CatBoostClassifier()
    model.load_model(blob=content)

    def predict(inputs: Any) -> Values:
        rows = _rows(inputs) if isinstance(inputs, np.ndarray) else inputs
        return np.asarray(model.predict_proba(rows, thread_count=1))

    return Loaded(predict, _names(model.classes_), _names(model.feature_names_))


def _load_onnx(content: bytes) -> Loaded:
    onnxruntime = require("onnxruntime", "onnx", extra="teachers")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    floats = {"tensor(float)": np.float32, "tensor(double)": np.float64}
    given = session.get_inputs()[0]
    kind = {**floats, "tensor(int64)": np.int64}.get(given.type)
    if kind is None or len(session.get_inputs()) > 1:
        raise UserError("must have one input: a tensor of floats, or of token ids")
    outputs = [each.name for each in session.get_outputs() if each.type in floats]
    if not outputs:
        raise UserError(
            "has no tensor of floats as its output; export it with probabilities as one tensor "
            "(skl2onnx: options={'zipmap': False})"
        )
    output = next((name for name in outputs if "prob" in name.lower()), outputs[-1])

    def predict(inputs: Values) -> Values:
        flat = inputs.reshape(len(inputs), -1) if len(given.shape) == 2 else inputs
        found = session.run([output], {given.name: flat.astype(kind)})[0].astype(np.float64)
        if found.ndim != 2 or found.shape[1] < 2:
            raise UserError(f"gives {list(found.shape)} where one value for each class is expected")
        if _are_probabilities(found):
            return np.asarray(found)
        powers = np.exp(found - found.max(1, keepdims=True))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    return Loaded(predict)


def _are_probabilities(values: Values) -> bool:
    if values.ndim != 2 or values.min(initial=0) < -_TOLERANCE:
        return False
    return bool(np.abs(values.sum(1) - 1).max(initial=0) < _TOLERANCE)


def _rows(inputs: Any) -> Values:
    if not isinstance(inputs, np.ndarray):  # a table
        return np.asarray(inputs.to_numpy(dtype=np.float32))
    return np.ascontiguousarray(inputs.reshape(len(inputs), -1), dtype=np.float32)


def _names(labels: Any) -> tuple[str, ...]:
    return tuple(str(label) for label in np.asarray(labels).tolist())
