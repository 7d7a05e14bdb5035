"""Models of runs on a SuperLink, brought to the results on this host through a run's log."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fedkd.engines.app_folder import AppFolder
from fedkd.engines.connection import locate_on_host
from fedkd.engines.follower import Follower
from fedkd.engines.superlink import SuperLink, read_connection
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.run_log import Kind
from fedkd.results.record import RunRecord
from fedkd.util.files import hash_file, replacing
from fedkd.util.safetensors_header import find_checkpoint_problem


class Receiver:
    """Takes the lines of a log in which models are sent, and writes each one once it is whole.

    Args:
        paths: where the models go, in the order in which they are sent.
        scratch: folder for what has not arrived completely.
        on_model: called with the path of each model that is complete.
    """

    def __init__(
        self, paths: Sequence[Path], scratch: Path, on_model: Callable[[Path], None]
    ) -> None:
        self._paths = paths
        self._part = scratch / "arriving.safetensors"
        self._size = -1
        self._on_model = on_model
        self.complete = 0

    def take(self, kind: Kind, value: Any) -> None:
        """Take a line.

        Raises:
            FedKDError: it does not follow on the lines before, or the model is not the run's.
        """
        if kind not in ("model", "part"):
            return
        try:
            if value["index"] != self.complete or self.complete >= len(self._paths):
                raise ValueError("parts come in another order")
            if kind == "model":
                self._size = int(value["size"])
                self._part.write_bytes(b"")
            else:
                with self._part.open("ab") as file:
                    file.write(base64.b64decode(value["data"], validate=True))
            arrived = self._part.stat().st_size
            if arrived > self._size:
                raise ValueError(f"{arrived} bytes came of {self._size}")
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise FedKDError(f"the SuperLink's host did not send a model: {error}") from error
        if arrived == self._size:
            self._keep(self._paths[self.complete])

    def _keep(self, path: Path) -> None:
        """Put a model beside its run's record, if its hash is there."""
        found, expected = hash_file(self._part), RunRecord.read(path.parent).models[path.name]
        if found != expected:
            raise FedKDError(
                f"the SuperLink's host has another {path.name} than that of {path.parent}: its "
                f"SHA-256 is {found[:12]}..., the record says {expected[:12]}..."
            )
        if problem := find_checkpoint_problem(self._part):
            raise FedKDError(f"{path} cannot be used: {problem}")
        with replacing(path) as temporary:
            temporary.write_bytes(self._part.read_bytes())
        self.complete += 1
        self._size = -1
        self._on_model(path)


def fetch_models(connection: str, paths: Sequence[Path], on_model: Callable[[Path], None]) -> None:
    """Bring models of runs on a SuperLink to the runs' folders on this host.

    Args:
        connection: name of the SuperLink.
        paths: where they go; the records of their runs name their hashes.
        on_model: called with the path of each model that has arrived.

    Raises:
        UserError: a folder is not of a run on a SuperLink.
        FedKDError: a model is not there, is too large, or is not that of the record.
    """
    asked = [{**locate_on_host(path.parent), "file": path.name} for path in paths]
    link, place = read_connection(connection), AppFolder()
    try:
        superlink = SuperLink(link, place)
        run_id = superlink.submit({keys.CONFIG_FETCH: json.dumps(asked)})
        receiver = Receiver(paths, place.folder, on_model)
        try:
            Follower(superlink, run_id, receiver.take, "sent").follow()
        except KeyboardInterrupt:
            superlink.stop(run_id)
            raise
        if receiver.complete < len(paths):
            raise FedKDError(f"{receiver.complete} of {len(paths)} models arrived; fetch again")
    finally:
        place.close()
