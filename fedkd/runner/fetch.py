"""``fedkd fetch``: the models of a study on hosts, brought to its results folder."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkd.config.study_file import resolve_study
from fedkd.engines import INLINE, RAY
from fedkd.engines.connection import RUN_FILE, locate_on_host
from fedkd.engines.follower import build_value, follow_run
from fedkd.errors import FedKDError, UserError
from fedkd.messages import keys
from fedkd.messages.run_log import Kind
from fedkd.results.folder import STUDY_FILE, find_run, read_study
from fedkd.results.record import STATE_FILE, RunRecord
from fedkd.util.files import hash_file, replacing
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


def fetch_models(
    connection: str, hashes: Mapping[Path, str], on_model: Callable[[Path], None]
) -> None:
    """Bring models of runs on a SuperLink to the runs' folders on this host.

    The SHA-256 of each model stands by its path on this host.

    Raises:
        UserError: a folder is not of a run on a SuperLink.
        FedKDError: a model is not there, is too large, or has another hash.
    """
    paths = list(hashes)
    asked = [{**locate_on_host(path.parent), "file": path.name} for path in paths]

    def take(kind: Kind, value: Any) -> None:
        """Take a line: the next part of a model, or that the model is whole."""
        if kind == "part":
            try:
                part.write(base64.b64decode(build_value(str, value), validate=True))
            except ValueError:
                raise FedKDError("the SuperLink's host sent a part that is not valid") from None
        elif kind == "model" and paths:
            path = paths.pop(0)
            part.seek(0)
            found = hashlib.file_digest(part, "sha256").hexdigest()
            if found != hashes[path]:
                raise FedKDError(
                    f"the SuperLink's host has another {path.name} than that of {path.parent}: "
                    f"its SHA-256 is {found[:12]}..., the record says {hashes[path][:12]}..."
                )
            part.seek(0)
            with replacing(path) as temporary, temporary.open("wb") as file:
                shutil.copyfileobj(part, file)
            part.seek(0)
            part.truncate()
            on_model(path)

    with tempfile.TemporaryFile() as part:
        follow_run(connection, {keys.CONFIG_FETCH: json.dumps(asked)}, take, "sent")
