"""``fedkd fetch``: the models of a study on hosts, brought to its results folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedkd.config.study_file import resolve_study
from fedkd.engines import INLINE, RAY
from fedkd.engines.connection import RUN_FILE
from fedkd.engines.fetch import fetch_models
from fedkd.errors import UserError
from fedkd.results.folder import STUDY_FILE, find_run, read_study
from fedkd.results.record import STATE_FILE, RunRecord
from fedkd.util.files import hash_file
from fedkd.util.lock import lock_folder


def fetch_study(folder: Path, engine: str | None, on_model: Callable[[Path], None]) -> list[Path]:
    """Bring the models of every finished run that are not here yet; return the paths of all.

    By default the connection is the study's.

    Raises:
        UserError: the study did not run on a SuperLink, or no run has finished.
        FedKDError: a model cannot be brought.
    """
    folder = find_run(folder)
    study = resolve_study(read_study(folder), origin=str(folder / STUDY_FILE))
    name = engine or study.engine.name
    if name in (INLINE, RAY):
        raise UserError(
            f"{folder} ran on this host (engine.name: {name}); its models are in its folder"
        )
    with lock_folder(folder):
        hashes: dict[Path, str] = {}
        for run in sorted(path.parent for path in folder.glob(f"*/seed-*/{RUN_FILE}")):
            if (run / STATE_FILE).is_file():
                hashes |= {run / file: h for file, h in sorted(RunRecord.read(run).models.items())}
        if not hashes:
            raise UserError(f"{folder} has no finished run with a model; resume the study first")
        here = {path for path in hashes if path.is_file() and hash_file(path) == hashes[path]}
        if missing := {path: hashes[path] for path in hashes if path not in here}:
            fetch_models(name, missing, on_model)
    return list(hashes)
