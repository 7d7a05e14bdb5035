"""The run's own log, by which its record reaches a caller on another host."""

from __future__ import annotations

import base64
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedkd.messages.run_log import Kind, encode_line
from fedkd.results.evaluation import Evaluation
from fedkd.results.record import Point, RunRecord


class RunLog:
    """Prints every point, and at the end the record, as checksummed lines.

    It is an Observer. Flower passes what is printed on in pieces, one for each ``write``, and other
    threads print too: so every line goes out whole, in one piece, on a line of its own.
    """

    def __init__(self) -> None:
        self._lines = 0

    def on_point(self, point: Point) -> None:
        """Print a round, for people and for programs."""
        _write(f"round {point.round}: accuracy {point.accuracy:.4f}")
        self._print("point", asdict(point))

    def on_distillation(self, epoch: int, epochs: int) -> None:
        """Print about twenty epochs: each line of the log is a message to the SuperLink."""
        if epoch == epochs or epoch % max(1, epochs // 20) == 0:
            self._print("distillation", [epoch, epochs])

    def on_waiting(self, reason: str) -> None:
        """Print which silos the run waits for."""
        self._print("waiting", reason)

    def on_end(self, folder: Path) -> None:
        """Print the whole record, and where model and state are on this host."""
        record = asdict(RunRecord.read(folder))
        self._print("record", record)
        _write(f"model and state: {folder}")

    def on_evaluation(self, evaluation: Evaluation) -> None:
        """Print the figures of given models."""
        self._print("evaluation", evaluation.to_dict())

    def on_part(self, content: bytes) -> None:
        """Print the next part of a model's file."""
        self._print("part", base64.b64encode(content).decode())

    def on_model(self, name: str) -> None:
        """Print that a model's file is complete."""
        self._print("model", name)

    def on_sent(self) -> None:
        """Print that all models are sent."""
        self._print("sent", {})

    def on_error(self, reason: str) -> None:
        """Print why there will be no record."""
        self._print("error", reason)

    def _print(self, kind: Kind, value: Any) -> None:
        _write(encode_line(self._lines, kind, value))
        self._lines += 1


def _write(line: str) -> None:
    sys.stdout.write(f"\n{line}\n")
    sys.stdout.flush()
