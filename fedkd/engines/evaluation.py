"""Given models on deployed silos: a run on a SuperLink that trains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkd.config import Study
from fedkd.engines.connection import locate_on_host
from fedkd.engines.follower import follow_run
from fedkd.errors import FedKDError, UserError, one_line
from fedkd.messages import keys
from fedkd.messages.run_log import Kind
from fedkd.messages.validate import printable
from fedkd.results.evaluation import Evaluation


def evaluate_on_hosts(
    study: Study, seed: int, models: Mapping[str, Path], report: Callable[[str], None]
) -> Evaluation:
    """Let deployed silos and their server measure models.

    A model is a file on the SuperLink's host, or the folder of a run on a SuperLink in the
    results on this host.

    Raises:
        UserError: a model is not of that kind.
        FedKDError: the run failed.
    """
    asked = [{"name": name, **_locate(path)} for name, path in models.items()]
    # An arm that asks silos for nothing of their own.
    without = [name for name, arm in study.arms.items() if not arm.starts_from_models]
    texts: dict[str, str | int] = {
        keys.CONFIG_STUDY: json.dumps(study.to_dict()),
        keys.CONFIG_ARM: (without or list(study.arms))[0],
        keys.CONFIG_MODELS: json.dumps(asked),
        keys.CONFIG_SEED: seed,
    }

    def take(kind: Kind, value: Any) -> None:
        if kind == "waiting":
            report(f"waiting: {printable(value)}")

    found = follow_run(study.engine.name, texts, take, "evaluation")
    try:
        return Evaluation.parse(found, list(models), study.silo_names)
    except (ValueError, TypeError) as error:
        raise FedKDError(
            f"what the SuperLink's host sent is not valid: {one_line(error)}"
        ) from error


def _locate(path: Path) -> dict[str, Any]:
    """Return how the SuperLink's host finds a model."""
    if not path.is_dir():
        if not path.is_absolute():
            raise UserError(
                f"{path}: the server of deployed silos reads models on the SuperLink's host; give "
                "an absolute path there, or the folder RUN/ARM/seed-N of a run on it"
            )
        return {"path": str(path)}
    return locate_on_host(path)
