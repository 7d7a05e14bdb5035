"""Read a silo's audit log: a row a message, and a sum for each study."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedkd.errors import UserError
from fedkd.util import files

COLUMNS = (
    *("time", "study", "study-hash", "arm", "seed", "run", "round", "type", "bytes", "sha256"),
    *("code", "data", "transfer", "refused"),
)
MAX_LINE_BYTES = 1 << 20
DAMAGED = "(damaged)"
"""Stands for the study of lines that a full disk cut, or that were edited."""
UNNAMED = "(not named)"
"""Stands for the study of entries from before the log named it."""


def parse_date(text: str) -> datetime:
    """Return the time of a date or time in ISO 8601; UTC unless it says otherwise."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"--since: {text!r} is not a date such as 2026-03-01 or 2026-03-01T08:00"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def read_entries(path: Path, since: datetime | None = None) -> Iterator[dict[str, Any]]:
    """Yield the entries of an audit log from a time on, and all damaged lines, without a time.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                entry = _read_line(line)
                if entry is None:
                    kind = f"line {number} of the log"
                    yield {"time": "", "study": DAMAGED, "type": kind, "bytes": 0}
                elif since is None or entry["time"] >= since:
                    yield {**entry, "time": entry["time"].isoformat(timespec="milliseconds")}
    except OSError as error:
        raise UserError(f"audit: {path} cannot be read: {error.strerror}") from error


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line[:MAX_LINE_BYTES])
        time = datetime.fromisoformat(entry["time"])
        if time.tzinfo is None or type(entry["bytes"]) is not int:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return {**entry, "time": time}


def to_csv(entries: Iterable[Mapping[str, Any]]) -> str:
    """Return entries as CSV with a header line.

    A text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    rows = [{column: _cell(entry.get(column)) for column in COLUMNS} for entry in entries]
    return files.to_csv(rows, COLUMNS)


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def sum_by_study(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a sum for each study, in the order of first messages.

    Each has ``study``, ``messages``, ``refused``, ``bytes`` (of replies that were not refused),
    ``kinds`` (messages by type), ``first``, ``last`` and the sorted ``code``, ``data`` and
    ``transfer`` hashes.
    """
    sums: dict[str, dict[str, Any]] = {}
    for entry in entries:
        name = str(entry.get("study") or UNNAMED)
        total = sums.setdefault(
            name,
            {
                "study": name,
                "messages": 0,
                "refused": 0,
                "bytes": 0,
                "kinds": Counter(),
                "first": entry["time"],
                "code": set(),
                "data": set(),
                "transfer": set(),
            },
        )
        total["messages"] += 1
        total["kinds"][str(entry.get("type"))] += 1
        total["last"] = entry["time"]
        if "refused" in entry:
            total["refused"] += 1
        else:
            total["bytes"] += entry["bytes"]
        for key in ("code", "data", "transfer"):
            if isinstance(entry.get(key), str):
                total[key].add(entry[key])
    for total in sums.values():
        total["kinds"] = dict(total["kinds"])
        total |= {key: sorted(total[key]) for key in ("code", "data", "transfer")}
    return list(sums.values())
