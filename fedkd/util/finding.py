"""The result of one check of a machine or a silo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``ok``; ``note``, for something optional; ``broken``, if every study fails.
        value: the result, in a phrase.
        advice: what to do, or empty.
        details: the same for programs.
    """

    name: str
    level: Level
    value: str
    advice: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
