"""Experiment trackers by name: where a study's curves go beside its results folder.

They are chosen on the command line and not in the study file, because they change no result: the
same study is the same study, and finds the same cache, whoever watches. Each tracker is set by
its own environment variables, as in any other project.
"""

from __future__ import annotations

from collections.abc import Sequence

from fedkd.errors import UserError
from fedkd.registry import TRACKERS
from fedkd.trackers.base import Tracker
from fedkd.util.requirements import install_command


def make_trackers(names: Sequence[str]) -> list[Tracker]:
    """Return the trackers of these names, each once.

    Raises:
        UserError: a name is unknown, or its package is not installed.
    """
    return [_make(name) for name in dict.fromkeys(names)]


def _make(name: str) -> Tracker:
    try:
        tracker: Tracker = TRACKERS.load(name)()
    except ValueError as error:
        raise UserError(f"--track: {error}") from None
    except ImportError as error:
        raise UserError(
            f"--track {name}: {error.name or error} is not installed; {install_command(name)}"
        ) from error
    return tracker
