"""Engines by name: where an arm runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fedkd.errors import UserError

if TYPE_CHECKING:
    from fedkd.config import Study
    from fedkd.engines.base import Engine

INLINE, RAY = "inline", "ray"


def check_engine(study: Study) -> None:
    """Refuse an engine that there is not, or that cannot reach the study's silos.

    Raises:
        UserError: says which engines there are.
    """
    name = study.engine.name
    if name not in (INLINE, RAY):
        from fedkd.engines.superlink import read_connection

        read_connection(name)
    elif study.is_deployed:
        raise UserError(
            f"engine.name: {name} simulates silos on this host, but partition.scheme is deployed: "
            "these are on hosts of their own; use --engine CONNECTION, a SuperLink connection of "
            "Flower's config.toml"
        )


def make_engine(study: Study, pool: ThreadPoolExecutor) -> Engine:
    """Return the engine that the study names: one of ours, or a SuperLink connection of Flower's.

    Raises:
        UserError: there is no such engine or connection.
    """
    name = study.engine.name
    if name == INLINE:
        from fedkd.engines.inline import InlineEngine

        return InlineEngine(pool)
    if name == RAY:
        from fedkd.engines.ray import RayEngine

        return RayEngine(study)
    from fedkd.engines.connection import ConnectionEngine

    return ConnectionEngine(name)
