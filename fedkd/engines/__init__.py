"""Engines by name; an engine decides where an arm runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fedkd.errors import UserError

if TYPE_CHECKING:
    from fedkd.config import Study
    from fedkd.engines.base import Engine

INLINE, RAY = "inline", "ray"


def check_engine(study: Study) -> None:
    """Refuse an engine that does not exist or cannot reach the study's silos.

    Raises:
        UserError: names the engines that exist.
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
    """Return the engine that the study names: a built-in one or a Flower SuperLink connection.

    Raises:
        UserError: no engine or connection has this name.
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
