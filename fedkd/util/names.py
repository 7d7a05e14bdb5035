"""Names of silos, studies and arms: valid characters, and natural order."""

from __future__ import annotations

import re

SILO_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
STUDY_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
"""Of a study or an arm."""


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which digits compare as numbers: silo-2 before silo-10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), p) if p.isdigit() else (1, 0, p) for p in parts)
