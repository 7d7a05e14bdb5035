"""A run that asks no silo: it sends models of earlier runs to the caller, through its log.

The log is the only thing that Flower brings back from a SuperLink. It is kept in the SuperLink's
database, and Flower sends what was printed every fifth of a second in one piece. So parts are
small, printing is paced, and models are bounded.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedkd.errors import FedKDError
from fedkd.results.record import is_model_file
from strategies.run_config import state_folder
from strategies.run_log import RunLog

PART_BYTES, PAUSE_SECONDS = 3 << 16, 0.05
"""A request of Flower's uploader then has about 1 MB."""
MAX_MODEL_BYTES = 256 << 20


def send_models(asked: str) -> None:
    """Send files of runs whose state is on this host.

    Args:
        asked: study, run, arm, seed and file of each, as JSON.

    Raises:
        FedKDError: one is not here, or is too large for a log.
    """
    log = RunLog()
    try:
        for path in [_find(each) for each in json.loads(asked)]:
            with path.open("rb") as file:
                while part := file.read(PART_BYTES):
                    log.on_part(part)
                    time.sleep(PAUSE_SECONDS)
            log.on_model(path.name)
        log.on_sent()
    except FedKDError as error:
        log.on_error(str(error))
        raise


def _find(asked: dict[str, Any]) -> Path:
    study, run, arm, name = (str(asked[key]) for key in ("study", "run", "arm", "file"))
    if not is_model_file(name):
        raise FedKDError(f"run config: {name[:80]!r} is not the name of a run's model")
    path = state_folder(study, run, arm, int(asked["seed"])) / name
    if not path.is_file():
        raise FedKDError(f"{path} is not on the SuperLink's host; was it removed there?")
    if (size := path.stat().st_size) > MAX_MODEL_BYTES:
        raise FedKDError(
            f"{path} has {size >> 20} MiB, more than the {MAX_MODEL_BYTES >> 20} MiB that a run's "
            "log carries; copy it from the SuperLink's host by other means, such as scp"
        )
    return path
