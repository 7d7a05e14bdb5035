"""What a study of silos in the field may say: their data lie on hosts that nobody else reads."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from fedkd.registry import NO_SOURCE

if TYPE_CHECKING:
    from fedkd.config.study import Study

DEPLOYED = "deployed"
_OF_FILES = re.compile(r"(folder|npz):(.*)", re.DOTALL)


def fill_deployed(data: Any) -> Any:
    """Fill in what follows from silos in the field: a server that owns no images unless it says so.

    Args:
        data: the study as its file holds it; it is not changed.
    """
    partition = data.get("partition") if isinstance(data, dict) else None
    if not isinstance(partition, dict) or partition.get("scheme") != DEPLOYED:
        return data
    own = data.get("data", {})
    if isinstance(own, dict) and own.get("source", NO_SOURCE) == NO_SOURCE:
        return {**data, "data": {"validation": 0, **own, "source": NO_SOURCE}}
    return data


def check_deployed(study: Study) -> None:
    """Refuse what silos in the field cannot have, and what only they can have."""
    data = study.data
    if not study.is_deployed:
        if data.source == NO_SOURCE:
            raise ValueError(
                f"data.source: {NO_SOURCE} leaves nothing to share among simulated silos; it is "
                "for partition.scheme: deployed"
            )
        if data.classes or data.channels:
            key = "classes" if data.classes else "channels"
            raise ValueError(
                f"data.{key}: is read from data.source unless the silos are in the field"
            )
        return
    for key in ("classes", "channels", "image_size"):
        if getattr(data, key) is None:
            raise ValueError(
                f"data.{key}: is missing; of silos in the field nobody but the study can tell it"
            )
    if data.train_size is not None:
        raise ValueError("data.train_size: cannot cap what silos in the field own; leave it out")
    if study.pretraining.checkpoints:
        raise ValueError(
            "pretraining.checkpoints: silos in the field name their own, in silo.yaml; leave it out"
        )
    if data.source == NO_SOURCE:
        _check_without_source(study)
    for key, source in (
        ("data.source", data.source),
        ("data.transfer.source", data.transfer.source),
    ):
        match = _OF_FILES.fullmatch(source or "")
        if match and not PurePath(match[2]).is_absolute():
            raise ValueError(
                f"{key}: {source} is a relative path, but of silos in the field the server's own "
                "images lie on the SuperLink's host: give the whole path there"
            )


def _check_without_source(study: Study) -> None:
    if study.data.validation > 0:
        raise ValueError(
            "data.validation: the server has no images to set apart while data.source is "
            f"{NO_SOURCE}; name a source on the SuperLink's host"
        )
    if study.data.transfer.source is not None:
        return
    for name, arm in study.arms.items():
        if arm.consolidation is not None or arm.strategy == "feddf":
            raise ValueError(
                f"data.transfer.source: is missing; arms.{name} distils on the server, which has "
                "no images of its own: name a source on the SuperLink's host, noise or student-silo"
            )
