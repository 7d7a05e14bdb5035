"""Engines by name: where an arm runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from experiments.engines.base import Engine
    from fedkd.study import Study

INLINE, RAY = "inline", "ray"


def make_engine(study: Study, pool: ThreadPoolExecutor) -> Engine:
    """Return the engine that the study names: one of ours, or a SuperLink connection of Flower's.

    Raises:
        UserError: there is no such engine or connection.
    """
    name = study.engine.name
    if name == INLINE:
        from experiments.engines.inline import InlineEngine

        return InlineEngine(pool)
    if name == RAY:
        from experiments.engines.ray import RayEngine

        return RayEngine(study)
    from experiments.engines.connection import ConnectionEngine

    return ConnectionEngine(name)
