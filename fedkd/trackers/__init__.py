"""Experiment trackers by name: they log a study's curves in addition to its results folder.

They are chosen on the command line and not in the study file, because they change no result: a
study has the same cache keys with and without them. Each tracker is configured by its own
environment variables, as in any other project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fedkd.errors import UserError
from fedkd.registry import TRACKERS
from fedkd.trackers.base import Tracker
from fedkd.util.requirements import install_command


def make_trackers(names: Sequence[str]) -> list[Tracker]:
    """Return the trackers of these names, each once.

    Raises:
        UserError: a name is unknown, its package is not installed, or a class of the user's own
            failed or is not a tracker.
    """
    return [_make(name) for name in dict.fromkeys(names)]


def _make(name: str) -> Tracker:
    try:
        tracker: Tracker = TRACKERS.call(name)
    except ValueError as error:
        raise UserError(f"--track: {error}") from None
    except ImportError as error:
        raise _missing(f"--track {name}", name, error) from error
    for method in ("begin", "close"):
        if not callable(getattr(tracker, method, None)):
            raise UserError(f"--track {name}: {type(tracker).__name__} has no method {method}")
    return tracker


def load_registry() -> Callable[[str, Sequence[Path], Mapping[str, str]], str]:
    """Return the function that puts a model into MLflow's registry.

    Raises:
        UserError: MLflow is not installed.
    """
    try:
        from fedkd.trackers.mlflow import register_model
    except ImportError as error:
        raise _missing("--register", "mlflow", error) from error
    return register_model


def _missing(option: str, tracker: str, error: ImportError) -> UserError:
    what = f"{option}: {error.name or error} is not installed"
    return UserError(f"{what}; {install_command(tracker)}")
