"""Weights & Biases: offline unless ``WANDB_MODE`` is set, so that nothing is sent by default.

``wandb sync`` sends an offline run later.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported

import wandb

from fedkd.results.record import Point
from fedkd.trackers.base import TrackedRun, figures_of


class WandbTracker:
    """Writes a run for every arm and seed, grouped by study and timestamp.

    W&B's own variables are used: ``WANDB_MODE`` (``online`` sends), ``WANDB_PROJECT`` (``fedkd``
    by default), ``WANDB_DIR`` (the results folder by default), ``WANDB_ENTITY`` and the rest.
    """

    def begin(self, run: TrackedRun) -> _Log:
        """Open a run; several may be open at once."""
        opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedkd"),
            name=run.name,
            group=f"{run.study.name}/{run.folder.name}",
            job_type=run.arm,
            config=run.settings(),
            dir=None if "WANDB_DIR" in os.environ else str(run.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            reinit="create_new",
            # Only the curve: no terminal output, code, git state or machine load.
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True
            ),
        )
        return _Log(opened)

    def close(self) -> None:
        """End W&B's background process."""
        wandb.teardown()


class _Log:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, point: Point) -> None:
        self._run.log({"round": point.round, **figures_of(point)}, step=point.round)

    def end(self, figures: Mapping[str, float], *, status: str) -> None:
        self._run.summary.update({**figures, "stopped": status})
        self._run.finish(exit_code=1 if status == "failed" else 0)
