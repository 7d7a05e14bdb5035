"""Models of runs on a SuperLink, brought to the results on this host through a run's log."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkd.engines.connection import locate_on_host
from fedkd.engines.follower import build_value, follow_run
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.run_log import Kind
from fedkd.util.files import replacing


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
            part.write(base64.b64decode(build_value(str, value)))
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
