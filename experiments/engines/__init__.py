"""Engines by name: where an arm runs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from fedkd.errors import UserError

if TYPE_CHECKING:
    from experiments.engines.base import Engine
    from fedkd.study import Study

INLINE, RAY = "inline", "ray"


def make_engine(study: Study, pool: ThreadPoolExecutor) -> Engine:
    """Return the engine that the study names.

    Raises:
        UserError: there is no such engine.
    """
    name = study.engine.name
    if name == INLINE:
        from experiments.engines.inline import InlineEngine

        return InlineEngine(pool)
    if name == RAY:
        from experiments.engines.ray import RayEngine

        return RayEngine(study)
    raise UserError(f"engine.name: there is no engine {name!r}; known are {INLINE} and {RAY}")
