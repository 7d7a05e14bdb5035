"""Models of other libraries: ONNX, scikit-learn, XGBoost, LightGBM and CatBoost. They only predict.

The state of such a model is the content of its library's own file, so that it is hashed and cached
as the state of any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.data.columns import Encoder
from fedkd.errors import UserError, one_line, raise_exhaustion
from fedkd.models.external_formats import Loaded, check_readable, load_external
from fedkd.models.libraries import require
from fedkd.models.state import State
from fedkd.registry import EXTERNAL_CLASSES
from fedkd.util.checkpoint_files import external_format, find_weights_problem

if TYPE_CHECKING:
    from fedkd.models.build import Shape

LEAST_PROBABILITY = 1e-6
"""Smaller ones count as this, so that their logarithm is finite. Ours."""
_PROBED = 8


class ExternalModel(nn.Module):
    """A model whose forward pass is a library's; it has no weights that can be trained."""

    file: Tensor
    classes: Tensor
    encoder: Tensor

    def __init__(self, arch: str, num_classes: int) -> None:
        super().__init__()
        self._library = library_of(arch)
        self._num_classes = num_classes
        self._loaded: tuple[Loaded, Encoder | None] | None = None
        self.register_buffer("file", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("encoder", torch.zeros(0, dtype=torch.uint8))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Take tensors of any length."""
        self._loaded = None
        for name in ("file", "classes", "encoder"):
            setattr(self, name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return log-probabilities ``[N, C]`` for inputs ``[N, ...]``.

        A class that the model does not have gets the least probability.
        """
        if self._loaded is None:
            text = _bytes(self.encoder).decode()
            encoder = Encoder.from_json(text) if text else None
            self._loaded = load_external(self._library, _bytes(self.file)), encoder
        loaded, encoder = self._loaded
        found = loaded.predict(inputs.detach().cpu().numpy(), encoder)
        logits = torch.full((len(found), self._num_classes), math.log(LEAST_PROBABILITY))
        known = np.log(np.clip(found, LEAST_PROBABILITY, 1.0))
        logits[:, self.classes.cpu()] = torch.from_numpy(known).float()
        return logits.to(inputs.device)


def library_of(arch: str) -> str:
    """Return the library of an architecture of :func:`fedkd.registry.is_external`."""
    return arch.partition(":")[0]


def make_state(content: bytes, classes: Sequence[int], encoder: Encoder | None = None) -> State:
    """Return the state of a model.

    Args:
        content: of its library's own file.
        classes: the position among the study's classes of each class of the model.
        encoder: by which inputs become the columns that the model takes; None for inputs as the
            study's models get them.
    """
    text = encoder.to_json() if encoder else ""
    return {
        "file": torch.tensor(np.frombuffer(content, np.uint8)),
        "classes": torch.tensor(list(classes), dtype=torch.int64),
        "encoder": torch.tensor(np.frombuffer(text.encode(), np.uint8)),
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def read_external(
    path: Path,
    shape: Shape,
    classes: Sequence[str],
    *,
    what: str,
    labels: Mapping[str, str] | None = None,
    examples: Tensor | None = None,
    encoder: Encoder | None = None,
) -> State:
    """Read a model's file, and try it.

    A model whose features are columns of the study's table by name gets these as they were read.

    Args:
        path: such as ``model.onnx``; its ending says which library reads it.
        shape: of the inputs that it must take.
        classes: of the study, in its order.
        what: how to name the file in an error.
        labels: the model's names of classes to the study's, where they differ.
        examples: some on which it is tried, ``[N, ...]``; by default noise.
        encoder: of the study's table, if it has one.

    Raises:
        UserError: it cannot be read, or does not fit the study.
    """
    if problem := find_weights_problem(path):
        raise UserError(f"{what}: {problem}")
    content, library = path.read_bytes(), external_format(path) or ""
    check_installed(library, f"{what}: {path}")
    if examples is None:
        examples = torch.rand(
            shape.zeros(_PROBED).shape, generator=torch.Generator().manual_seed(0)
        )
    try:
        check_readable(library, content)
        loaded = load_external(library, content)
        known = {column.name for column in encoder.columns} if encoder else set()
        if not loaded.features or not known.issuperset(loaded.features):
            encoder = None
        outputs = loaded.predict(examples.numpy(), encoder).shape[1]
        positions = _match(loaded.labels, outputs, classes, labels or {})
    except UserError as error:
        raise UserError(f"{what}: {path} {error}") from error
    except Exception as error:
        raise_exhaustion(error)
        raise UserError(
            f"{what}: {path} cannot be used as a model of {library} on {shape}: {one_line(error)}"
        ) from error
    return make_state(content, positions, encoder)


def check_installed(arch: str, what: str) -> Any:
    """Return the package whose version decides what models of an architecture predict."""
    library = library_of(arch)
    reader = {"onnx": "onnxruntime", "sklearn": "skops"}.get(library, library)
    package = require(reader, what, extra="teachers")
    return require("sklearn", what) if library == "sklearn" else package


def make_classifier(arch: str, **options: Any) -> Any:
    """Return an untrained classifier of ``library:Class`` of the registry's."""
    library, _, name = arch.partition(":")
    check_installed(arch, f"model.per_silo: {arch}")
    module = require(EXTERNAL_CLASSES[library][name], f"model.per_silo: {arch}", extra="teachers")
    return getattr(module, name)(**options)


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
