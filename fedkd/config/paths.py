"""Relative paths in study files and ``silo.yaml``, seen from the file's own folder."""

from __future__ import annotations

import os
from pathlib import Path

from fedkd.config.arm import Arm
from fedkd.config.backbone import is_weights_file
from fedkd.config.rounds import Model
from fedkd.registry import HUGGING_FACE, SOURCES


def absolute_model(model: Model, folder: Path) -> Model:
    """Return the section ``model`` with its paths seen from ``folder``."""
    files = [absolute_path(name, folder) for name in model.files]
    per_silo = {silo: absolute_arch(arch, folder) for silo, arch in model.per_silo.items()}
    weights = model.weights
    if weights and is_weights_file(weights):
        weights = absolute_path(weights, folder)
    arch = absolute_arch(model.arch, folder)
    update = {"files": files, "per_silo": per_silo, "weights": weights, "arch": arch}
    return model.model_copy(update=update)


def absolute_arch(arch: str, folder: Path) -> str:
    """Return ``hf:FOLDER`` with the folder seen from ``folder``; any other name unchanged."""
    name = arch.removeprefix(HUGGING_FACE)
    if name == arch:
        return arch
    path = absolute_path(name, folder)
    return f"{HUGGING_FACE}{path}" if Path(path).is_dir() else arch


def absolute_arm(arm: Arm, folder: Path) -> Arm:
    """Return an arm with its paths seen from ``folder``."""
    arch = arm.arch and absolute_arch(arm.arch, folder)
    checkpoint = arm.checkpoint and absolute_path(arm.checkpoint, folder)
    return arm.model_copy(update={"arch": arch, "checkpoint": checkpoint})


def absolute_path(name: str, folder: Path) -> str:
    """Return a path seen from ``folder``, with ``~`` expanded."""
    return str(folder / os.path.expanduser(name))  # noqa: PTH111 - leaves an unknown ~user


def absolute_source(source: str | None, folder: Path) -> str | None:
    """Return a data source with the path in it, if there is one, seen from ``folder``."""
    prefix, rest = SOURCES.split(source or "")
    if source is None or prefix is None or prefix.path is None:
        return source
    return source.removesuffix(rest) + absolute_path(rest, folder)
