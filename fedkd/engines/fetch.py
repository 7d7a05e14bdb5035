"""Models of runs on a SuperLink, brought to the results on this host through a run's log."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedkd.engines.app_folder import AppFolder
from fedkd.engines.connection import locate_on_host
from fedkd.engines.follower import Follower, build_value
from fedkd.engines.superlink import SuperLink, read_connection
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.run_log import Kind
from fedkd.util.files import hash_file, replacing


def fetch_models(
    connection: str, hashes: Mapping[Path, str], on_model: Callable[[Path], None]
) -> None:
    """Bring models of runs on a SuperLink to the runs' folders on this host.

    Args:
        connection: name of the SuperLink.
        hashes: SHA-256 of each model, by its path here.
        on_model: called with the path of each model that has arrived.

    Raises:
        UserError: a folder is not of a run on a SuperLink.
        FedKDError: a model is not there, is too large, or has another hash.
    """
    paths = list(hashes)
    asked = [{**locate_on_host(path.parent), "file": path.name} for path in paths]
    link, place = read_connection(connection), AppFolder()
    part = place.folder / "arriving"

    def take(kind: Kind, value: Any) -> None:
        """Take a line: the next part of a model, or that the model is whole."""
        if kind == "part":
            with part.open("ab") as file:
                file.write(base64.b64decode(build_value(str, value)))
        elif kind == "model" and paths:
            path = paths.pop(0)
            part.touch()
            if (found := hash_file(part)) != hashes[path]:
                raise FedKDError(
                    f"the SuperLink's host has another {path.name} than that of {path.parent}: "
                    f"its SHA-256 is {found[:12]}..., the record says {hashes[path][:12]}..."
                )
            with replacing(path) as temporary:
                shutil.copyfile(part, temporary)
            part.unlink()
            on_model(path)

    try:
        superlink = SuperLink(link, place)
        run_id = superlink.submit({keys.CONFIG_FETCH: json.dumps(asked)})
        try:
            Follower(superlink, run_id, take, "sent").follow()
        except KeyboardInterrupt:
            superlink.stop(run_id)
            raise
    finally:
        place.close()
