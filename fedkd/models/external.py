"""Models of other libraries: ONNX, scikit-learn, XGBoost, LightGBM and CatBoost. They only predict.

The state of such a model is the content of its library's own file, so that it is hashed and cached
as the state of any other. Nothing is unpickled: skops builds scikit-learn's types alone.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedkd.errors import UserError, describe_exhaustion
from fedkd.models.libraries import require
from fedkd.models.state import State
from fedkd.registry import EXTERNAL_CLASSES
from fedkd.util.checkpoint_files import (
    MAX_EXTERNAL_BYTES,
    external_format,
    find_weights_problem,
)

if TYPE_CHECKING:
    from fedkd.models.build import Shape

LEAST_PROBABILITY = 1e-6
"""Smaller ones count as this, so that their logarithm is finite. Ours."""
PACKAGES = {
    "onnx": "onnxruntime",
    "sklearn": "skops",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
}
_SKOPS_TYPES = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
)
"""Loaded beside what skops trusts itself, which is scikit-learn's estimators and NumPy's arrays."""
_PROBED = 8
_TOLERANCE = 1e-3

Values = npt.NDArray[Any]


@dataclass(frozen=True)
class Loaded:
    """A model in its library.

    Attributes:
        predict: turns inputs ``[N, ...]`` into class probabilities ``[N, K]``, or ``[N]`` of the
            second of two classes.
        labels: what the model calls its classes, in its order; None where its file does not say.
    """

    predict: Callable[[Values], Values]
    labels: tuple[str, ...] | None = None


class ExternalModel(nn.Module):
    """A model whose forward pass is a library's; it has no weights that can be trained.

    Args:
        arch: such as ``xgboost`` or ``sklearn:LogisticRegression``.
        num_classes: C, of the study.
    """

    file: Tensor
    classes: Tensor

    def __init__(self, arch: str, num_classes: int) -> None:
        super().__init__()
        self._format = arch.partition(":")[0]
        self._num_classes = num_classes
        self._loaded: Loaded | None = None
        self.register_buffer("file", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Take tensors of any length."""
        self._loaded = None
        for name in ("file", "classes"):
            setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities ``[N, C]`` for inputs ``[N, ...]``.

        A class that the model does not have gets the least probability.
        """
        if self._loaded is None:
            self._loaded = load_external(self._format, self.file.cpu().numpy().tobytes())
        found = _predict(self._loaded, inputs)
        known = np.clip(found, LEAST_PROBABILITY, 1.0)
        logits = torch.full((len(known), self._num_classes), math.log(LEAST_PROBABILITY))
        logits[:, self.classes.cpu()] = torch.from_numpy(np.log(known)).float()
        return logits.to(inputs.device)


def make_state(content: bytes, classes: Sequence[int]) -> State:
    """Return the state of a model.

    Args:
        content: of its library's own file.
        classes: the position among the study's classes of each class of the model.
    """
    file = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return {"file": file, "classes": torch.tensor(list(classes), dtype=torch.int64)}


def read_external(
    path: Path,
    shape: Shape,
    classes: Sequence[str],
    *,
    what: str,
    labels: Mapping[str, str] | None = None,
) -> State:
    """Read a model's file, and try it.

    Args:
        path: such as ``model.onnx``; its ending says which library reads it.
        shape: of the inputs that it must take.
        classes: of the study, in its order.
        what: how to name the file in an error.
        labels: the model's names of classes to the study's, where they differ.

    Raises:
        UserError: it cannot be read, or does not fit the study.
    """
    if problem := find_weights_problem(path):
        raise UserError(f"{what}: {problem}")
    content, format_ = path.read_bytes(), external_format(path) or ""
    require(PACKAGES[format_], f"{what}: {path}", extra="teachers")
    try:
        loaded = load_external(format_, content)
        found = _predict(loaded, _probe(shape))
        positions = _match(loaded.labels, found.shape[1], classes, labels or {})
    except UserError as error:
        raise UserError(f"{what}: {path} {error}") from error
    except Exception as error:
        if describe_exhaustion(error):
            raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{what}: {path} cannot be used as a model of {format_} on {shape}: {reason}"
        ) from error
    return make_state(content, positions)


def check_external(arch: str, kind: str) -> None:
    """Refuse a library that is not installed, or does not take such examples.

    Raises:
        UserError: it is so.
    """
    format_, _, name = arch.partition(":")
    require(PACKAGES[format_], f"model.per_silo: {arch}", extra="teachers")
    if name:
        require(EXTERNAL_CLASSES[format_][name], f"model.per_silo: {arch}", extra="teachers")
    if kind == "text" and format_ != "onnx":
        raise UserError(f"model.per_silo: {arch} takes rows of numbers, not the tokens of texts")


def external_version(arch: str) -> str:
    """Return the version of an architecture's library, which decides what it predicts."""
    library = arch.partition(":")[0]
    package = "sklearn" if library == "sklearn" else PACKAGES[library]
    return str(require(package, f"model.per_silo: {arch}", extra="teachers").__version__)


def load_external(format_: str, content: bytes) -> Loaded:
    """Read a model from the content of its file; what a library raises is passed on."""
    library = require(PACKAGES[format_], f"a model of {format_}", extra="teachers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _LOADERS[format_](library, content)


def _probe(shape: Shape) -> Tensor:
    """Return a few inputs ``[8, ...]`` on which a model is tried: noise, or token 0."""
    zeros = shape.zeros(_PROBED)
    if shape.kind == "text":
        return zeros
    return torch.rand(zeros.shape, generator=torch.Generator().manual_seed(0))


def _predict(loaded: Loaded, inputs: Tensor) -> Values:
    """Return class probabilities ``[N, K]``, float64."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = np.asarray(loaded.predict(inputs.detach().cpu().numpy()), dtype=np.float64)
    if found.ndim == 1:
        found = np.stack([1 - found, found], axis=1)
    sums_to_one = found.ndim == 2 and np.abs(found.sum(1) - 1).max(initial=0) < _TOLERANCE
    if not sums_to_one or found.min(initial=0) < -_TOLERANCE or len(found) != len(inputs):
        raise UserError(
            "does not give the probability of each class; it must be a classifier, with "
            "probabilities as its output"
        )
    return found


def _match(
    own: tuple[str, ...] | None, outputs: int, classes: Sequence[str], labels: Mapping[str, str]
) -> list[int]:
    """Return the position among the study's classes of each of the model's."""
    if own is None or len(own) != outputs:
        if outputs != len(classes):
            raise UserError(f"predicts {outputs} classes, but the study has {len(classes)}")
        return list(range(outputs))
    named = [labels.get(name, name) for name in own]
    if all(name in classes for name in named):
        return [list(classes).index(name) for name in named]
    if all(name.isdigit() and int(name) < len(classes) for name in named):
        return [int(name) for name in named]
    raise UserError(
        f"predicts the classes {', '.join(named[:20])}, but the study has "
        f"{', '.join(classes[:20])}; train it on the names of the study's classes, or on their "
        "positions from 0"
    )


def _rows(inputs: Values) -> Values:
    return np.ascontiguousarray(inputs.reshape(len(inputs), -1), dtype=np.float32)


def _names(labels: Any) -> tuple[str, ...]:
    return tuple(str(label) for label in np.asarray(labels).tolist())


def _load_sklearn(_: Any, content: bytes) -> Loaded:
    io = require("skops.io", "a model of sklearn", extra="teachers")
    with zipfile.ZipFile(BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_EXTERNAL_BYTES:
            raise UserError(f"unpacks to more than {MAX_EXTERNAL_BYTES >> 20} MiB")
    if others := [t for t in io.get_untrusted_types(data=content) if t not in _SKOPS_TYPES]:
        raise UserError(
            f"holds {others[0]}, which is not loaded: only estimators of scikit-learn itself are"
        )
    model = io.loads(content, trusted=list(_SKOPS_TYPES))
    if not hasattr(model, "predict_proba"):
        raise UserError(f"is a {type(model).__name__}, which gives no probabilities of classes")
    return Loaded(
        lambda inputs: model.predict_proba(_rows(inputs).astype(np.float64)),
        _names(model.classes_),
    )


def _load_xgboost(xgboost: Any, content: bytes) -> Loaded:
    booster = xgboost.Booster({"nthread": 1})
    booster.load_model(bytearray(content))
    booster.set_param({"nthread": 1})
    best = booster.attr("best_iteration")
    trees = (0, 0 if best is None else int(best) + 1)
    return Loaded(
        lambda inputs: booster.inplace_predict(
            _rows(inputs), iteration_range=trees, validate_features=False
        )
    )


def _load_lightgbm(lightgbm: Any, content: bytes) -> Loaded:
    booster = lightgbm.Booster(model_str=content.decode())
    return Loaded(lambda inputs: booster.predict(_rows(inputs), num_threads=1))


def _load_catboost(catboost: Any, content: bytes) -> Loaded:
    model = catboost.CatBoostClassifier()
    model.load_model(blob=content)
    return Loaded(
        lambda inputs: model.predict_proba(_rows(inputs), thread_count=1), _names(model.classes_)
    )


def _load_onnx(onnxruntime: Any, content: bytes) -> Loaded:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    if len(session.get_inputs()) != 1:
        raise UserError(f"has {len(session.get_inputs())} inputs where one is expected")
    (given,) = session.get_inputs()
    kinds = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(int64)": np.int64}
    if given.type not in kinds:
        raise UserError(f"takes {given.type}; it must take a tensor of floats, or of token ids")
    outputs = [each for each in session.get_outputs() if each.type in list(kinds)[:2]]
    if not outputs:
        raise UserError(
            "has no tensor of floats as its output; export it with probabilities as one tensor "
            "(skl2onnx: options={'zipmap': False})"
        )
    output = next((each for each in outputs if "prob" in each.name.lower()), outputs[-1])

    def predict(inputs: Values) -> Values:
        flat = inputs.reshape(len(inputs), -1) if len(given.shape) == 2 else inputs
        found = session.run([output.name], {given.name: flat.astype(kinds[given.type])})[0]
        return _softmax_of_logits(np.asarray(found, dtype=np.float64))

    return Loaded(predict)


def _softmax_of_logits(outputs: Values) -> Values:
    """Return probabilities ``[N, K]`` as they are, and logits through a softmax."""
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        raise UserError(
            f"gives an output {list(outputs.shape)} where one value for each class is expected"
        )
    if outputs.min(initial=0) >= 0 and np.abs(outputs.sum(1) - 1).max(initial=0) < _TOLERANCE:
        return outputs
    powers = np.exp(outputs - outputs.max(1, keepdims=True))
    probabilities: Values = powers / powers.sum(1, keepdims=True)
    return probabilities


_LOADERS: dict[str, Callable[[Any, bytes], Loaded]] = {
    "onnx": _load_onnx,
    "sklearn": _load_sklearn,
    "xgboost": _load_xgboost,
    "lightgbm": _load_lightgbm,
    "catboost": _load_catboost,
}
