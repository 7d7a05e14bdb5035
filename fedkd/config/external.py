"""Silos whose own models are of other libraries: they predict, and no weights are exchanged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fedkd.registry import EXTERNAL_CLASSES, STARTS, is_external
from fedkd.suggestions import suggest
from fedkd.util.checkpoint_files import external_format

if TYPE_CHECKING:
    from fedkd.config.study import Study


def fill_external(data: Any) -> Any:
    """Return a study, as its file holds it, with the architecture of silos of other libraries.

    It follows from the ending of their checkpoints.
    """
    pretraining = data.get("pretraining") if isinstance(data, Mapping) else None
    named = pretraining.get("checkpoints") if isinstance(pretraining, Mapping) else None
    model = data.get("model", {}) if isinstance(data, Mapping) else None
    if not isinstance(named, Mapping) or not isinstance(model, Mapping):
        return data
    found = {silo: external_format(path) for silo, path in named.items() if isinstance(path, str)}
    formats = {silo: format_ for silo, format_ in found.items() if format_}
    per_silo = model.get("per_silo", {})
    if not formats or not isinstance(per_silo, Mapping):
        return data
    return {**data, "model": {**model, "per_silo": {**formats, **per_silo}}}


def check_external_models(study: Study) -> None:
    """Refuse what cannot be done with models that only predict."""
    trained = {"model.arch": study.model.arch}
    trained |= {f"arms.{name}.arch": arm.arch for name, arm in study.arms.items() if arm.arch}
    for key, arch in trained.items():
        if is_external(arch):
            raise ValueError(
                f"{key}: {arch} only predicts, and rounds train a network; name it in "
                "model.per_silo, as the model that a silo has before"
            )
    external = {silo: arch for silo, arch in study.model.per_silo.items() if is_external(arch)}
    for silo, path in study.pretraining.checkpoints.items():
        own = external_format(path)
        if own != external.get(silo) and (own or silo in external):
            raise ValueError(
                f"pretraining.checkpoints.{silo}: {path} is not a file of "
                f"{study.arch_of(silo)}; leave out model.per_silo.{silo}, or name another file"
            )
    for silo, arch in external.items():
        _check_source(study, silo, arch)
    for name in study.arms if external else ():
        _check_arm(study, name, *next(iter(external.items())))


def _check_source(study: Study, silo: str, arch: str) -> None:
    """Refuse a model that nobody has trained, or a class that its library does not have."""
    library, _, name = arch.partition(":")
    known = EXTERNAL_CLASSES.get(library, {})
    if name and name not in known:
        raise ValueError(
            f"model.per_silo.{silo}: {library} has no classifier {name!r}{suggest(name, known)}; "
            f"known are {', '.join(known)}"
        )
    if study.is_deployed and name:
        raise ValueError(
            f"model.per_silo.{silo}: a deployed silo has trained its model; write {library}"
        )
    if not study.is_deployed and not name and silo not in study.pretraining.checkpoints:
        examples = f", or train one, such as {library}:{next(iter(known))}" if known else ""
        raise ValueError(
            f"model.per_silo.{silo}: {arch} is the kind of a file; name it in "
            f"pretraining.checkpoints.{silo}{examples}"
        )


def _check_arm(study: Study, name: str, silo: str, arch: str) -> None:
    """Refuse an arm that asks all silos for the weights of their models."""
    arm = study.arms[name]
    settings = arm.consolidation
    if STARTS.is_own(arm.start) or not arm.starts_from_models:
        return
    if settings is None:
        raise ValueError(
            f"arms.{name}.start: {arm.start} needs the weights of the silos' models, but the model "
            f"of {silo} is of {arch}, which only predicts; use start: consolidated with "
            "consolidation.mode: logits"
        )
    if settings.mode == "weights":
        raise ValueError(
            f"arms.{name}.consolidation.mode: the model of {silo} is of {arch}, which only "
            "predicts; set mode: logits, with student: fresh"
        )
