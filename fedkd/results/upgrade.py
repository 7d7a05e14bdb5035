"""Resolved studies of fedkd 0.1.0, converted to the current names."""

from __future__ import annotations

import copy
from typing import Any

from fedkd.suggestions import RENAMED


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


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _rename_value(mapping: dict[str, Any], key: str) -> None:
    name = mapping.get(key)
    if isinstance(name, str):
        mapping[key] = RENAMED.get(name, name)
