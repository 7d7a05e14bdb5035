"""MLflow: an SQLite file beside the results, or the server in ``MLFLOW_TRACKING_URI``."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# MLflow reads this when it is imported; a value that the user has set is kept.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from fedkd.errors import UserError
from fedkd.results.record import Point
from fedkd.trackers.base import TrackedRun, figures_of, flatten

DATABASE = "mlflow.db"
EXPORTS = "fedkd exports"
"""Experiment of the runs that hold registered models' files."""
LONGEST_PARAM = 6000
"""Maximum length of a parameter's value in MLflow."""


class MLflowTracker:
    """Writes an experiment for each study, with a run for each arm and seed.

    ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` replace ``<out>/mlflow.db`` and the
    study's name.
    """

    def __init__(self) -> None:
        self._uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not self._uri:
            importlib.import_module("sqlalchemy")
            importlib.import_module("alembic")
        self._client: MlflowClient | None = None

    def begin(self, run: TrackedRun) -> _Log:
        """Open a run; its experiment is created if it is missing."""
        client = self._connect(run.folder)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or run.study.name
        experiment = client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else client.create_experiment(name)
        tags = {"arm": run.arm, "seed": str(run.seed), "results": str(run.folder)}
        opened = client.create_run(number, run_name=run.name, tags=tags)
        settings = flatten(run.settings()).items()
        params = [Param(key, str(value)[:LONGEST_PARAM]) for key, value in settings]
        client.log_batch(opened.info.run_id, params=params)
        return _Log(client, opened.info.run_id)

    def register(self, name: str, files: Sequence[Path], tags: Mapping[str, str]) -> str:
        """Put an exported model into MLflow's registry; return its version there.

        The registered model is made if it is missing; the files are copied to the
        registry's store.
        """
        folder = files[0].absolute().parent
        client = MlflowClient(self._uri or f"sqlite:///{folder / DATABASE}")
        store = None if self._uri else (folder / "mlartifacts").as_uri()
        try:
            found = client.get_experiment_by_name(EXPORTS)
            if found:
                experiment = found.experiment_id
            else:
                experiment = client.create_experiment(EXPORTS, artifact_location=store)
            run = client.create_run(experiment, run_name=name, tags=dict(tags)).info
            for file in files:
                client.log_artifact(run.run_id, str(file), "model")
            client.set_terminated(run.run_id)
            with contextlib.suppress(MlflowException):  # it is there already
                client.create_registered_model(name)
            source = f"{run.artifact_uri}/model"
            version = client.create_model_version(name, source, run.run_id, tags=dict(tags))
        except MlflowException as error:
            raise UserError(f"--register: MLflow refuses {name!r}: {error.message}") from error
        return str(version.version)

    def close(self) -> None:
        """Drop the connection."""
        self._client = None

    def _connect(self, folder: Path) -> MlflowClient:
        if self._client is None:
            # Otherwise they print every step of creating a database.
            for logger in ("mlflow.store", "alembic"):
                logging.getLogger(logger).setLevel(logging.WARNING)
            database = folder.absolute().parents[1] / DATABASE
            self._client = MlflowClient(self._uri or f"sqlite:///{database}")
        return self._client


class _Log:
    def __init__(self, client: MlflowClient, run: str) -> None:
        self._client = client
        self._run = run

    def log(self, point: Point) -> None:
        self._write(figures_of(point), point.round)

    def end(self, figures: Mapping[str, float], *, status: str) -> None:
        self._write(figures, 0)
        self._client.log_batch(self._run, tags=[RunTag("stopped", status)])
        ended = {"failed": "FAILED", "interrupted": "KILLED"}.get(status, "FINISHED")
        self._client.set_terminated(self._run, ended)

    def _write(self, figures: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in figures.items()]
        self._client.log_batch(self._run, metrics=metrics)
