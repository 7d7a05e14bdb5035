"""What a study may say of deployed silos, whose data are on hosts of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from fedkd.registry import LOCAL_LOSSES, NO_SOURCE, SOURCES

if TYPE_CHECKING:
    from fedkd.config.arm import Arm
    from fedkd.config.data import Data
    from fedkd.config.study import Study

DEPLOYED = "deployed"
GIVEN = "given"


def fill_deployed(data: Any) -> Any:
    """Return a study, as its file holds it, with what follows from silos with data of their own.

    Without a source there are no other examples.
    """
    partition = data.get("partition") if isinstance(data, dict) else None
    scheme = partition.get("scheme") if isinstance(partition, dict) else None
    own = data.get("data", {}) if scheme in (DEPLOYED, GIVEN) else None
    default = NO_SOURCE if scheme == DEPLOYED else None
    if isinstance(own, dict) and own.get("source", default) == NO_SOURCE:
        return {**data, "data": {"validation": 0, **own, "source": NO_SOURCE}}
    return data


def check_simulated(study: Study) -> None:
    """Refuse what only a study of deployed silos can have."""
    data = study.data
    if data.source == NO_SOURCE:
        if study.partition.scheme != GIVEN:
            raise ValueError(
                f"data.source: {NO_SOURCE} leaves nothing to divide among simulated silos; it is "
                "for partition.scheme: deployed and given"
            )
        _check_without_source(data, study.arms)
    if any(study.rounds_of(arm).enough is not None for arm in study.arms):
        raise ValueError(
            "rounds.enough: ends a round by the clock; it is for partition.scheme: deployed, and "
            "simulated silos are all waited for"
        )
    if data.classes or data.channels:
        key = "classes" if data.classes else "channels"
        raise ValueError(
            f"data.{key}: is read from data.source; it is for partition.scheme: deployed"
        )


def check_deployed(study: Study) -> None:
    """Refuse what a study of deployed silos cannot have."""
    data, is_image = study.data, not (study.is_table or study.is_text)
    for key in ("classes", "channels", "image_size") if is_image else ("classes",):
        if getattr(data, key) is None:
            raise ValueError(f"data.{key}: is missing; deployed silos take it from the study")
    if data.train_size is not None:
        raise ValueError("data.train_size: cannot limit what deployed silos own; leave it out")
    if study.pretraining.checkpoints:
        raise ValueError(
            "pretraining.checkpoints: deployed silos name their own, in silo.yaml; leave it out"
        )
    for name in study.arms:
        settings = study.rounds_of(name)
        if settings.enough is not None and settings.enough < settings.quorum:
            raise ValueError(
                f"arms.{name}: rounds.enough, {settings.enough:g}, is below rounds.quorum, "
                f"{settings.quorum:g}; a round with fewer replies than the quorum ends the run"
            )
        if LOCAL_LOSSES.is_own(settings.local_loss):
            raise ValueError(
                f"arms.{name}: local_loss {settings.local_loss} is code that a study names, which "
                f"deployed silos do not run; use one of {', '.join(LOCAL_LOSSES)}"
            )
    if data.source == NO_SOURCE:
        _check_without_source(data, study.arms)
    _check_paths(data, study.arms)


def _check_paths(data: Data, arms: Mapping[str, Arm]) -> None:
    """Refuse relative paths of what is on the SuperLink's host."""
    for name, arm in arms.items():
        if arm.checkpoint and not PurePath(arm.checkpoint).is_absolute():
            raise ValueError(
                f"arms.{name}.checkpoint: {arm.checkpoint} is a relative path, but the server of "
                "deployed silos reads it on the SuperLink's host: give the absolute path there"
            )
    for key, source in (
        ("data.source", data.source),
        ("data.transfer.source", data.transfer.source),
    ):
        prefix, rest = SOURCES.split(source or "")
        if prefix and prefix.path and not PurePath(rest).is_absolute():
            raise ValueError(
                f"{key}: {source} is a relative path, but the server of deployed silos has its "
                "examples on the SuperLink's host: give the absolute path there"
            )


def _check_without_source(data: Data, arms: Mapping[str, Arm]) -> None:
    if data.validation > 0:
        raise ValueError(
            f"data.validation: the server has no examples while data.source is {NO_SOURCE}; name a "
            "source that it can read"
        )
    if data.transfer.source is not None:
        return
    for name, arm in arms.items():
        if arm.consolidation is not None or arm.strategy == "feddf":
            raise ValueError(
                f"data.transfer.source: is missing; arms.{name} distils on the server, which has "
                "no examples of its own: name a source that it can read, noise or student-silo"
            )
