"""Where a run stands after a round, in one file, so that a killed run goes on to the same bits.

Nothing random is in it: every choice is drawn anew from its seed, purpose, silo and round
(:mod:`fedkd.util.seeding`), so that a round depends on the model before it, on the state of the
server's update, and on who took part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord
from safetensors import SafetensorError
from safetensors.torch import load_file

from fedkd.config.own import function_keys
from fedkd.data.images import Images, content_hash
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.models.build import arch_fingerprint
from fedkd.models.state import State, mismatch, save_state
from fedkd.results.record import PROGRESS_FILE, Point, Quarantined
from fedkd.util.cache import cache_key
from fedkd.util.safetensors_header import find_checkpoint_problem, read_metadata
from strategies.context import RunContext
from strategies.diagnostics import Beginning
from strategies.exchange import Member

_KEY = "fedkd-progress"
_MODEL, _UPDATE, _BEGUN, _TAUGHT, _STUDENT = "model/", "memory/", "begun", "taught/", "student"
_KEPT_OF_MEMBERS = (keys.ARCHITECTURE, keys.NUM_EXAMPLES, keys.CLASS_COUNTS)

ABSENT = -1
"""The node of a silo that took part before and has not come back."""


@dataclass(frozen=True)
class SavePoint:
    """A run after one of its rounds.

    Attributes:
        curve: every point so far, from round 0 on.
        model: the global model.
        state_dict: what the server's update remembers.
        members: the silos that introduced themselves, in natural order; their nodes are ``ABSENT``
            in a save point that was read, as nodes have new ids after a restart.
        quarantined: every reply that was refused.
        notes: figures for the record.
        exchanges_before_round_1: what the start cost.
        beginning: what the end will be judged by.
    """

    curve: tuple[Point, ...]
    model: State
    state_dict: State
    members: tuple[Member, ...]
    quarantined: tuple[Quarantined, ...]
    notes: Mapping[str, Any]
    exchanges_before_round_1: int
    beginning: Beginning | None


class CheckpointWriter:
    """Keeps the latest save point of one run in its folder.

    Args:
        folder: the run's.
        context: the run.
    """

    def __init__(self, folder: Path, context: RunContext) -> None:
        self._path = folder / PROGRESS_FILE
        self._fingerprint = fingerprint(context)
        self._num_classes = context.shape.num_classes

    def write(self, point: SavePoint) -> None:
        """Replace the save point, atomically."""
        beginning = point.beginning
        tensors = {_MODEL + key: tensor for key, tensor in point.model.items()}
        tensors |= {_UPDATE + key: tensor for key, tensor in point.state_dict.items()}
        if beginning is not None:
            tensors[_BEGUN] = beginning.begun
            tensors |= {_TAUGHT + silo: classes for silo, classes in beginning.taught.items()}
            if beginning.student is not None:
                tensors[_STUDENT] = beginning.student
        told = {
            "fingerprint": self._fingerprint,
            "curve": [asdict(each) for each in point.curve],
            "members": [
                {"name": m.name, "info": {k: m.info[k] for k in _KEPT_OF_MEMBERS if k in m.info}}
                for m in point.members
            ],
            "quarantined": [asdict(entry) for entry in point.quarantined],
            "notes": dict(point.notes),
            "exchanges_before_round_1": point.exchanges_before_round_1,
            "teachers": [] if beginning is None else list(beginning.taught),
        }
        save_state(self._path, tensors, {_KEY: json.dumps(told, allow_nan=False)})

    def read(self, like: State) -> SavePoint | None:
        """Return the save point; None where the run has not come to its first.

        Args:
            like: a state of the run's architecture.

        Raises:
            FedKDError: the file is damaged or belongs to another run.
        """
        if not self._path.exists():
            return None
        if problem := find_checkpoint_problem(self._path):
            raise FedKDError(f"{problem}; {self._remedy}")
        try:
            told = json.loads(read_metadata(self._path)[_KEY])
            if told["fingerprint"] != self._fingerprint:
                raise FedKDError(
                    f"{self._path} belongs to another study, arm, seed, targets or version of "
                    f"fedkd; {self._remedy}"
                )
            tensors = load_file(self._path)
            point = self._parse(told, tensors)
        except (
            *(SafetensorError, OSError, RecursionError),
            *(ValueError, TypeError, KeyError, AttributeError),
        ) as error:
            raise FedKDError(f"{self._path} is damaged ({error}); {self._remedy}") from error
        if problem := mismatch(point.model, like):
            raise FedKDError(f"{self._path} is damaged: {problem}; {self._remedy}")
        return point

    def _parse(self, told: dict[str, Any], tensors: State) -> SavePoint:
        curve = tuple(Point(**each) for each in told["curve"])
        if not curve or [point.round for point in curve] != list(range(len(curve))):
            raise ValueError("it does not hold every round")
        beginning = None
        if _BEGUN in tensors:
            taught = {silo: tensors[_TAUGHT + silo] for silo in told["teachers"]}
            beginning = Beginning(tensors[_BEGUN], taught, tensors.get(_STUDENT))
        return SavePoint(
            curve=curve,
            model=_part(tensors, _MODEL),
            state_dict=_part(tensors, _UPDATE),
            members=tuple(
                Member(each["name"], ABSENT, ConfigRecord(each["info"])) for each in told["members"]
            ),
            quarantined=tuple(Quarantined(**entry) for entry in told["quarantined"]),
            notes=dict(told["notes"]),
            exchanges_before_round_1=int(told["exchanges_before_round_1"]),
            beginning=beginning,
        )

    def remove(self) -> None:
        """Remove the save point: the run has ended."""
        self._path.unlink(missing_ok=True)

    @property
    def _remedy(self) -> str:
        return "remove it to begin this run anew"


def fingerprint(context: RunContext) -> str:
    """Hash all that decides the bits of a run: study, arm, seed, targets, data, code, machine."""
    study = context.study
    own = [arch_fingerprint(arch, study.model.files) for arch in study.architectures]
    own += function_keys(study, context.arm_name)
    data: list[Images | None] = [context.test, context.validation, context.transfer]
    resolved = study.to_dict()
    resolved["engine"] = study.engine.model_dump(exclude={"workers"})
    return cache_key(
        {
            "kind": "progress",
            "study": resolved,
            "arm": context.arm_name,
            "seed": context.seed,
            "targets": list(context.targets),
            "data": ["none" if part is None else content_hash(part.images) for part in data],
            "own": own,
        }
    )


def _part(tensors: State, prefix: str) -> State:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
