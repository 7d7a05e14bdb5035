"""The run config of a run on a SuperLink: the arm, and where this host keeps its state."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from fedkd.config.study_file import parse_study
from fedkd.errors import FedKDError
from fedkd.federation.check import check_tokenizers
from fedkd.federation.federation import Federation
from fedkd.messages import keys
from fedkd.util.cache import cache_root
from fedkd.util.places import expand
from strategies.context import RunContext


def read_context(config: Mapping[str, str]) -> RunContext:
    """Return the server's part of the run that a run config names.

    Raises:
        FedKDError: it is not that of a study.
    """
    cache = Path(config[keys.CONFIG_CACHE_DIR] or cache_root())
    study = parse_study(config[keys.CONFIG_STUDY], origin="run config: study")
    arm, seed = config[keys.CONFIG_ARM], int(config[keys.CONFIG_SEED])
    if arm not in study.arms:
        raise FedKDError(f"run config: arm: the study has no arm {arm!r}")
    targets = json.loads(config[keys.CONFIG_TARGETS] or "[]") or study.absolute_targets or []
    federation = Federation.on_server(study, seed, cache)
    if study.is_deployed:  # the caller has no such files
        check_tokenizers(study)
    return RunContext.of(federation, arm, tuple(targets))


def state_folder(study: str, name: str, arm: str, seed: int) -> Path:
    """Return where this host keeps record and model of a run that another host asked for.

    A run of the same name is resumed from there.

    Args:
        study: its name.
        name: of the run, given by the caller.
        arm: of the study.
        seed: of the study.

    Raises:
        FedKDError: a name is not valid for a folder.
    """
    for part in (study, name, arm):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", part):
            raise FedKDError(
                f"run config: {keys.CONFIG_RUN_NAME}: {part[:80]!r} is not a valid name of a folder"
            )
    chosen = os.environ.get("FEDKD_STATE_DIR")
    root = expand(chosen) if chosen else cache_root() / "flwr-runs"
    return root / study / name / arm / f"seed-{seed}"
