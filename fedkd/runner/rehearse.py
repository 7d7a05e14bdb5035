"""The rehearsal of a study with deployed silos: all of it on this machine, one round an arm."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedkd.config import Study
from fedkd.deploy.rehearsal import shorten, write_silo
from fedkd.engines.loopback import CONNECTION, Loopback
from fedkd.report.progress import StudyProgress
from fedkd.runner.run import run_study

CACHE = "FEDKD_CACHE_DIR"


def rehearse_study(
    study: Study, *, images: int, progress: StudyProgress, report: Callable[[str], None]
) -> dict[str, Any]:
    """Run one round of every arm with real SuperLink and SuperNode processes.

    Keys, certificates, images and models are generated; all files and processes are gone at the
    end, however it ends.

    Returns:
        The summary of the shortened study, as in ``summary.json``.

    Raises:
        UserError: the study simulates its silos, or cannot be run.
        FedKDError: Flower's programs do not start.
    """
    with tempfile.TemporaryDirectory(prefix="fedkd-rehearsal-") as name, _own_cache(Path(name)):
        folder = Path(name)
        short = shorten(study, folder=folder, engine=CONNECTION)
        report(f"generating {images} images for each of {len(short.silo_names)} silos")
        silos = {
            silo: write_silo(short, silo, folder / silo, images=images) for silo in short.silo_names
        }
        with Loopback(silos, report):
            return run_study(short, out=folder / "runs", fresh=True, progress=progress).summary


@contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Let this process, and those that it starts, keep what they decode in a folder."""
    before = os.environ.get(CACHE)
    os.environ[CACHE] = str(folder / "cache")
    try:
        yield
    finally:
        if before is None:
            del os.environ[CACHE]
        else:
            os.environ[CACHE] = before
