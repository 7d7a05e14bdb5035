"""What a check of a machine or a silo found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was looked at.
        level: ``ok``; ``note``, for what may be missed; ``broken``, for what every study needs.
        value: what is there, in a phrase.
        advice: what to do, or empty.
        details: the same for programs.
    """

    name: str
    level: Level
    value: str
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
