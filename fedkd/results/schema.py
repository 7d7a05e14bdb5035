"""What ``summary.json`` holds, as far as reports need it; any further key is accepted."""

from __future__ import annotations

import json
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model

from fedkd.errors import UserError
from fedkd.registry import MetricName
from fedkd.results.record import Count, Point, Quarantined, Share, Stopped
from fedkd.util.error_messages import explain
from fedkd.util.names import STUDY_NAME

SCHEMA = 1
Known = Share | None
Name = Annotated[str, Field(pattern=rf"^{STUDY_NAME.pattern}$")]
"""Of a study or arm: paths and matplotlib's labels are made of it."""
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, defer_build=True)


def _keys(**kinds: Any) -> Any:
    """Return a model of a mapping: the type of each value, with a default if it may be absent."""
    pairs: dict[str, Any] = {k: v if isinstance(v, tuple) else (v, ...) for k, v in kinds.items()}
    return create_model("Keys", __config__=_CONFIG, **pairs)


def _list(kind: Any) -> Any:
    return GenericAlias(list, (kind,))


_TUNED = _keys(trials=Count, seeds=list[Count], at_edge=(list[str], []))
_RESOLVED = _keys(
    arms=GenericAlias(dict, (Name, _keys(start=str, tuned=(_TUNED | None, None)))),
    seeds=list[Count],
    targets=Annotated[list[float], Field(min_length=1)]
    | _keys(of_baseline_best=Annotated[list[float], Field(min_length=1)]),
    baselines=(list[str], []),
    metric=(MetricName, "accuracy"),
    partition=(_keys(silos=(Count | dict[str, Any], 0), names=(list[str], [])), {}),
    data=(dict[str, Any], {}),
    model=(dict[str, Any], {}),
)
_FLIPS = _keys(per_class=(_keys(gain=list[Known], forgetting=list[Known]) | None, None))
_INSTRUMENTS = _keys(
    student=(_FLIPS | None, None),
    rounds=(_FLIPS | None, None),
    agreement=(Known, None),
    teachers=(_list(_keys(silo=str, accuracy=Share, complementary=(Known, None))), []),
    silos=(_list(_keys(silo=str, before=(Known, None), after=(Known, None))), []),
)
_MODELS = dict.fromkeys(("own", "global", "adjusted", "fine_tuned", "loses_by"), Known)
_RUN = _keys(
    arm=str,
    seed=Count,
    cached=bool,
    accuracy_source=Literal["test", "silos"],
    stopped=Stopped,
    exchanges_before_round_1=Count,
    max_rounds=Count,
    curve=Annotated[list[Point], Field(min_length=1)],
    targets=_list(
        _keys(
            target=float,
            seconds=float | None,
            **dict.fromkeys(("round", "exchanges", "bytes"), Count | None),
        )
    ),
    quarantined=list[Quarantined],
    notes=_keys(
        quarantined_after=(dict[str, Count] | None, None),
        mean_weights=(dict[str, float] | None, None),
        metric_without=(list[str], []),
        warning=(str, ""),
        silos_get=(str, ""),
    ),
    instruments=(_INSTRUMENTS | None, None),
    silos_get=(_list(_keys(silo=str, num_held_out=Count, best=str | None, **_MODELS)), []),
)
_SIDES = _keys(arm=Count, baseline=Count)
_ROW = _keys(
    arm=str,
    baseline=str,
    target=float,
    num_seeds=Annotated[Count, Field(ge=1)],
    reached=_SIDES,
    exchanges=_SIDES,
    failed=(_SIDES, {}),
    uncharged=(_SIDES, {}),
    bound=Literal["exact", "at_least", "at_most", "undefined"],
    range=tuple[float, float] | None,
    range_kind=(Literal["extremes", "interval", "bootstrap"] | None, None),
    coverage=(float | None, None),
    ceiling_pct=float | None,
    **{f"{what}_saved_pct": float | None for what in ("exchanges", "bytes", "seconds")},
)
_SETTINGS = _keys(**dict.fromkeys(("temperature", "weight", "lr", "epochs"), (float | None, None)))
_SEARCH = _keys(
    arm=str,
    judged_by=str,
    trials=_list(_keys(state=str, value=Known, settings=_SETTINGS)),
)
_SUMMARY = _keys(
    study=Name,
    resolved=_RESOLVED,
    versions=dict[str, Any],
    machine=dict[str, Any],
    runs=_list(_RUN),
    comparison=_list(_ROW),
    failures=_list(_keys(arm=str, seed=Count, reason=str)),
    warnings=(list[str], []),
    constant_accuracy=(
        _list(_keys(seed=Count, accuracy=Known, metrics=(dict[str, Known] | None, None))),
        [],
    ),
    classes=(list[str], []),
    silos=(
        _list(_keys(seed=Count, silo=str, num_examples=Count, class_counts=list[Count])),
        [],
    ),
    tuning=(_list(_SEARCH), []),
)


def read_summary(path: Path) -> dict[str, Any]:
    """Read and check ``summary.json``.

    Raises:
        UserError: it cannot be read, or a key is missing or not valid.
    """
    text, summary = _load(path)
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise UserError(f"{path} is not a summary of schema {SCHEMA}, which this fedkd reads")
    _check(_SUMMARY, path, text, summary)
    if problem := _find_contradiction(summary):
        raise _error(path, problem)
    return summary


def read_search(path: Path, study: str) -> dict[str, Any] | None:
    """Read and check the results of ``fedkd tune``; None if they are of another study.

    Raises:
        UserError: they cannot be read, or a key is missing or not valid.
    """
    text, search = _load(path)
    if not isinstance(search, dict) or search.get("study") != study:
        return None
    _check(_SEARCH, path, text, search)
    return search


def _load(path: Path) -> tuple[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return text, json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _check(kind: Any, path: Path, text: str, data: dict[str, Any]) -> None:
    """Refuse what a model does not take.

    The text is parsed again: only from JSON does a strict check take a mapping as a record.
    """
    try:
        kind.model_validate_json(text)
    except ValidationError as error:
        raise _error(path, str(explain(error, data)[0])) from error


def _error(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: {problem}; restore the file, or run the study again")


def _find_contradiction(summary: dict[str, Any]) -> str:
    """Return in which keys, each valid by itself, a summary contradicts itself; else ``""``."""
    resolved, runs, lengths = summary["resolved"], summary["runs"], set()
    targets, baselines = resolved["targets"], resolved.get("baselines", [])
    number = len(targets if isinstance(targets, list) else targets["of_baseline_best"])
    named = {*baselines, *(each["arm"] for each in summary["failures"])}
    named |= {row[side] for row in summary["comparison"] for side in ("arm", "baseline")}
    against = {row["baseline"] for row in summary["comparison"]}
    if absent := sorted(against - set(baselines)):
        return f"resolved.baselines lacks {absent[0]!r}, which comparison names"
    for index, run in enumerate(runs):
        named.add(run["arm"])
        if [point["round"] for point in run["curve"]] != list(range(len(run["curve"]))):
            return f"runs.{index}.curve does not have every round once"
        if len(run["targets"]) not in (0, number):
            return f"runs.{index}.targets and resolved.targets differ in length"
        flips = [(run.get("instruments") or {}).get(key) or {} for key in ("student", "rounds")]
        by_class = [each["per_class"] for each in flips if each.get("per_class")]
        lengths |= {len(each[key]) for each in by_class for key in ("gain", "forgetting")}
    if absent := sorted(named - set(resolved["arms"])):
        return f"resolved.arms lacks {absent[0]!r}, which other keys name"
    if len(lengths | {len(row["class_counts"]) for row in summary.get("silos") or []}) > 1:
        return "silos.class_counts and per_class of runs.instruments differ in length"
    return ""
