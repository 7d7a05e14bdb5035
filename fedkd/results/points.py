"""Metrics of the points of a curve as ``rounds.jsonl`` and ``summary.json`` hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedkd.registry import metric_key


def point_value(point: Mapping[str, Any], metric: str) -> float | None:
    """Return a metric of a point, by its name in study files; None if it is not known."""
    metrics = point if metric == "accuracy" else point.get("metrics") or {}
    value = metrics.get(metric_key(metric))
    return None if value is None else float(value)


def metric_values(run: Mapping[str, Any], metric: str) -> list[float]:
    """Return a metric after each round of a run, where it is known."""
    values = (point_value(point, metric) for point in run["curve"])
    return [value for value in values if value is not None]


def flat_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point's values by name, with its metrics beside its own values.

    A metric of the same name as a value of the point's own is left out.
    """
    own = {key: value for key, value in point.items() if key not in ("round", "metrics")}
    return {**own, **{k: v for k, v in (point.get("metrics") or {}).items() if k not in own}}
