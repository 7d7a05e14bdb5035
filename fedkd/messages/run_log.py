"""A run's record as lines of its log: all that comes back from a SuperLink on another host.

A line has a number, counted from 0, and a checksum, so that a line that is cut, lost or repeated is
detected. It is plain ASCII, and the log of the run may hold anything else around it.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, get_args

from fedkd.errors import FedKDError
from fedkd.util.files import parse_json

MAX_LINE = 16 << 20
"""Bytes of the longest line that a reader looks at: the record of a run with many silos."""

_LINE = re.compile(r"fedkd-record (\d{1,9}) ([0-9a-f]{16}) (\{.*\})")
_MARK = "fedkd-record "

Kind = Literal[
    "point",
    "distillation",
    "waiting",
    "record",
    "evaluation",
    "model",
    "part",
    "sent",
    "error",
]


class BrokenLogError(FedKDError):
    """A line of the log is damaged, or one is missing: the log must be read again."""


def encode_line(number: int, kind: Kind, value: Any) -> str:
    """Return one line, without its end.

    Args:
        number: of the line in its run, from 0 without a gap.
        kind: what ``value`` is.
        value: plain values; NaN is refused.
    """
    text = json.dumps({"kind": kind, "value": value}, allow_nan=False)
    return f"{_MARK}{number} {_checksum(number, text)} {text}"


class LogReader:
    """Reads a run's lines in order, even if parts of its log are repeated."""

    def __init__(self) -> None:
        self._checksums: list[str] = []

    def read(self, line: str) -> tuple[Kind, Any] | None:
        """Return what is new in a line; None for a line without a record, or with a known one.

        Raises:
            BrokenLogError: the line is damaged, a line before it is missing, or it contradicts one
                that was read before.
        """
        start = line.find(_MARK)
        if start < 0:
            return None
        match = _LINE.fullmatch(line[start:].rstrip())
        if match is None or len(line) > MAX_LINE:
            raise BrokenLogError("a line of the run's record is damaged")
        number, text = int(match[1]), match[3]
        if match[2] != _checksum(number, text):
            raise BrokenLogError(f"line {number} of the run's record does not fit its checksum")
        if number < len(self._checksums):
            if match[2] != self._checksums[number]:
                raise BrokenLogError(f"line {number} of the run's record comes in two versions")
            return None
        if number > len(self._checksums):
            raise BrokenLogError(f"line {len(self._checksums)} of the run's record is missing")
        entry = _parse(text)
        self._checksums.append(match[2])
        return entry


def _parse(text: str) -> tuple[Kind, Any]:
    try:
        entry = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise BrokenLogError("a line of the run's record is no JSON") from error
    if entry.get("kind") not in get_args(Kind):
        raise BrokenLogError("a line of the run's record is of an unknown kind")
    return entry["kind"], entry.get("value")


def _checksum(number: int, text: str) -> str:
    return hashlib.sha256(f"{number} {text}".encode()).hexdigest()[:16]
