"""Results of fedkd 0.1.0, converted to the current names and rules."""

from __future__ import annotations

import copy
from typing import Any

from fedkd.suggestions import RENAMED

BOOTSTRAP_SEEDS = 5
"""Number of seeds from which version 0.1.0 computed an interval."""


def upgrade(study: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved study with renamed keys and names replaced; a current one is unchanged.

    Only places that version 0.1.0 could have written are converted. A study with unexpected
    content is returned as it is, for validation to refuse.
    """
    study = copy.deepcopy(study)
    model = _mapping(study.get("model"))
    _rename_value(model, "arch")
    for silo in list(_mapping(model.get("per_silo"))):
        _rename_value(model["per_silo"], silo)
    _rename_value(_mapping(study.get("partition")), "scheme")
    for arm in _mapping(study.get("arms")).values():
        _rename_value(_mapping(arm), "arch")
        consolidation = _mapping(_mapping(arm).get("consolidation"))
        _rename_value(consolidation, "student")
        for key in ("blends", "refine"):
            if key in consolidation:
                consolidation[RENAMED[key]] = consolidation.pop(key)
    return study


def upgrade_comparison(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a summary's comparison with all current keys in every row.

    Version 0.1.0 left out seeds on which a run had failed, and said ``exact`` of the others. Its
    interval, from five seeds on, is a bootstrap of percentiles. Its arms never start from a file.
    """
    failed = {(each["arm"], each["seed"]) for each in summary["failures"]}
    failed |= {(run["arm"], run["seed"]) for run in summary["runs"] if run["stopped"] == "quorum"}
    rows = []
    for row in summary["comparison"]:
        counts = {side: sum(arm == row[side] for arm, _ in failed) for side in ("arm", "baseline")}
        kind = "bootstrap" if row["num_seeds"] >= BOOTSTRAP_SEEDS else "extremes"
        absent = {"uncharged": {"arm": 0, "baseline": 0}, "range_kind": kind, "coverage": None}
        changed = {}
        if "failed" not in row:
            bound = "undefined" if any(counts.values()) else row["bound"]
            changed = {"failed": counts, "bound": bound}
        rows.append({**absent, **row, **changed})
    return rows


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rename_value(mapping: dict[str, Any], key: str) -> None:
    name = mapping.get(key)
    if isinstance(name, str):
        mapping[key] = RENAMED.get(name, name)
