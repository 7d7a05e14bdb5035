"""The log of the table's rows, so that an interruption loses no measured row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedkd.util.files import parse_json, write_text

LOG_FILE = "pairs.jsonl"


class Log:
    """One JSON line for each row, with the hash of all that determines it.

    An incomplete line, left by a kill, is ignored. Rows of other studies and settings stay in the
    file, and are reused by the same command.
    """

    def __init__(self, path: Path, *, fresh: bool) -> None:
        self._path = path
        self.rows: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.is_file() and not fresh else ""
        for line in text.splitlines(keepends=True):
            entry = _parse(line)
            if entry is not None:
                self.rows[entry["key"]] = entry["row"]
        whole = text[: text.rfind("\n") + 1]
        if fresh or whole != text:
            write_text(path, whole)

    def append(self, key: str, row: dict[str, Any]) -> None:
        """Add a row."""
        line = json.dumps({"key": key, "row": row}, allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        entry = parse_json(line)
    except ValueError:
        return None
    whole = line.endswith("\n") and isinstance(entry, dict) and isinstance(entry.get("row"), dict)
    return entry if whole and isinstance(entry.get("key"), str) else None
