"""TensorBoard: event files in the results folder; ``tensorboard --logdir runs`` shows them."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard.writer import SummaryWriter

from fedkd.results.record import Point
from fedkd.trackers.base import TrackedRun, figures_of
from fedkd.util.yaml_loader import dump_yaml


class TensorBoardTracker:
    """Writes ``<results>/tensorboard/<arm>/seed-<n>``."""

    def begin(self, run: TrackedRun) -> _Log:
        """Open the event file of a run."""
        folder = run.folder / "tensorboard" / run.arm / f"seed-{run.seed}"
        writer = SummaryWriter(str(folder))
        settings = dump_yaml(run.settings()).replace("\n", "\n    ")
        writer.add_text("settings", f"    {settings}")
        return _Log(writer)

    def close(self) -> None:
        """Do nothing: every run closes its own file."""


class _Log:
    def __init__(self, writer: SummaryWriter) -> None:
        self._writer = writer

    def log(self, point: Point) -> None:
        for name, value in figures_of(point).items():
            self._add(name, value, point.round)
        self._writer.flush()

    def end(self, figures: Mapping[str, float], *, status: str) -> None:
        for name, value in figures.items():
            self._add(f"final/{name}", value, 0)
        self._writer.add_text("stopped", status)
        self._writer.close()

    def _add(self, name: str, value: float, step: int) -> None:
        # TensorBoard's default of 32 bits would round the figures of rounds.jsonl.
        self._writer.add_scalar(name, value, step, new_style=True, double_precision=True)
