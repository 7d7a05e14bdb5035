"""The run's own log, through which its record reaches a caller on another host."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedkd.messages.run_log import Kind, encode_line
from fedkd.results.record import Point, RunRecord


class RunLog:
    """Prints every point, and at the end the record, as checksummed lines.

    It is an Observer. Flower passes what is printed on in pieces, one for each ``write``, and other
    threads print too: so every line goes out whole, in one piece, on a line of its own.
    """

    def __init__(self) -> None:
        self._lines = 0

    def on_point(self, point: Point) -> None:
        """Tell of a round, for people and for programs."""
        _write(f"round {point.round}: accuracy {point.accuracy:.4f}")
        self._tell("point", asdict(point))

    def on_distillation(self, epoch: int, epochs: int) -> None:
        """Tell of about twenty epochs: each line of the log is a message to the SuperLink."""
        if epoch == epochs or epoch % max(1, epochs // 20) == 0:
            self._tell("distillation", [epoch, epochs])

    def on_end(self, folder: Path) -> None:
        """Tell the whole record, and where model and state lie on this host."""
        record = asdict(RunRecord.read(folder))
        self._tell("record", record)
        _write(f"model and state: {folder}")

    def on_error(self, reason: str) -> None:
        """Tell why there will be no record."""
        self._tell("error", reason)

    def _tell(self, kind: Kind, value: Any) -> None:
        _write(encode_line(self._lines, kind, value))
        self._lines += 1


def _write(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()
