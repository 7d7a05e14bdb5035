"""Training of classifiers of other libraries on a silo's data, seeded and by one thread."""

from __future__ import annotations

import io
import re
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data.images import Images, as_inputs
from fedkd.errors import FedKDError, raise_exhaustion
from fedkd.models.external import make_classifier, make_state
from fedkd.models.libraries import require
from fedkd.models.state import State

_FOREST = {"min_samples_leaf": 5, "n_jobs": 1}
_OPTIONS: dict[str, dict[str, Any]] = {
    "LogisticRegression": {"max_iter": 1000},
    "RandomForestClassifier": _FOREST,
    "ExtraTreesClassifier": _FOREST,
    "XGBClassifier": {"n_jobs": 1},
    "LGBMClassifier": {"n_jobs": 1, "deterministic": True, "force_row_wise": True, "verbose": -1},
    "CatBoostClassifier": {
        "iterations": 200,
        "thread_count": 1,
        "allow_writing_files": False,
        "verbose": False,
    },
}
"""Settings that differ from the libraries' own: one thread, leaves that estimate probabilities, and
a solver that ends. Whoever wants others trains the model and names its file."""


class CannotLearnError(FedKDError):
    """A classifier cannot be trained on a silo's data."""


def train_external(arch: str, data: Images, seed: int) -> State:
    """Train a classifier of another library.

    Raises:
        CannotLearnError: the data are of one class, or the library does not take them.
    """
    library, _, name = arch.partition(":")
    inputs = as_inputs(data.images).flatten(1).numpy()
    classes, labels = np.unique(data.labels.numpy(), return_inverse=True)
    if len(classes) < 2:
        raise CannotLearnError(f"its examples are of one class, from which {arch} cannot learn")
    model = make_classifier(arch, random_state=seed, **_OPTIONS.get(name, {}))
    rows = inputs.astype(np.float64 if library == "sklearn" else np.float32)
    limits = require("threadpoolctl", arch, extra="teachers").threadpool_limits(limits=1)
    try:
        with warnings.catch_warnings(), limits:
            warnings.simplefilter("ignore")
            model.fit(rows, labels)
    except Exception as error:
        raise_exhaustion(error)
        raise CannotLearnError(f"{arch} cannot be trained on its data: {error}") from error
    return make_state(_SAVERS[library](model), classes.tolist())


def _save_sklearn(model: Any) -> bytes:
    """Return the file of skops, the same for equal models: it names objects by their addresses."""
    content = require("skops.io", "sklearn", extra="teachers").dumps(model)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    schema = files["schema.json"].decode()
    addresses: dict[str, str] = {}
    for address in re.findall(r'"__id__": (\d+)', schema):
        addresses.setdefault(address, str(len(addresses)))

    def renumber(text: str) -> str:
        return re.sub(r"\d{9,}", lambda match: addresses.get(match[0], match[0]), text)

    files["schema.json"] = renumber(schema).encode()
    saved = io.BytesIO()
    with zipfile.ZipFile(saved, "w") as archive:
        for name in sorted(files, key=renumber):
            archive.writestr(zipfile.ZipInfo(renumber(name)), files[name])
    return saved.getvalue()


def _save_catboost(model: Any) -> bytes:
    """Return CatBoost's file without the time of training and a random name."""
    for key in ("model_guid", "train_finish_time"):
        model.get_metadata()[key] = ""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.cbm"
        model.save_model(str(path))
        return path.read_bytes()


_SAVERS = {
    "sklearn": _save_sklearn,
    "xgboost": lambda model: bytes(model.get_booster().save_raw("ubj")),
    "lightgbm": lambda model: model.booster_.model_to_string().encode(),
    "catboost": _save_catboost,
}
