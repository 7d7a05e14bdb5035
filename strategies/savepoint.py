"""Where a run stands after a round, in one file, so that a killed run resumes to the same bits."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from fedkd.config.own import function_keys
from fedkd.data.images import Images, content_hash
from fedkd.errors import FedKDError
from fedkd.messages.describe import Description
from fedkd.models.build import arch_fingerprint
from fedkd.models.given import find_given
from fedkd.models.state import State, mismatch, save_state
from fedkd.results.record import PROGRESS_FILE, Point, Quarantined, build, model_files
from fedkd.util.cache import cache_key
from fedkd.util.files import parse_json
from fedkd.util.safetensors_header import find_checkpoint_problem, read_metadata
from strategies.context import RunContext
from strategies.kept_models import keep_models
from strategies.roster import ABSENT, Member
from strategies.run_state import Baseline, RunState

_KEY = "fedkd-progress"
_MODEL, _UPDATE, _BATCH_NORM = "model/", "update/", "batch-norm/"
_START, _TEACHER, _STUDENT = "baseline/start", "baseline/teacher/", "baseline/student"
_OTHERS = frozenset({"name", "arms", "rounds", "targets", "baselines", "seeds"})
"""Keys of a study that decide a run's bits through its arm, its rounds and its seed alone."""


class CheckpointWriter:
    """Keeps the latest state of one run in its folder.

    Args:
        folder: the run's.
        context: the run.
    """

    def __init__(self, folder: Path, context: RunContext) -> None:
        self.folder = folder
        self._path = folder / PROGRESS_FILE
        self._context = context
        self._fingerprint = fingerprint(context)

    def write(self, state: RunState) -> None:
        """Replace the save point, atomically, after the models that the run keeps."""
        keep_models(self._path.parent, self._context, state)
        baseline = state.baseline
        tensors = {_MODEL + key: tensor for key, tensor in state.model.items()}
        tensors |= {_UPDATE + key: tensor for key, tensor in state.update.items()}
        for silo, own in state.batch_norm.items():
            tensors |= {f"{_BATCH_NORM}{silo}/{key}": tensor for key, tensor in own.items()}
        if baseline is not None:
            tensors[_START] = baseline.start
            tensors |= {_TEACHER + silo: classes for silo, classes in baseline.teachers.items()}
            if baseline.student is not None:
                tensors[_STUDENT] = baseline.student
        rest = {
            "fingerprint": self._fingerprint,
            "curve": [asdict(point) for point in state.curve],
            "members": [
                {"name": member.name, "description": asdict(member.known)}
                for member in state.members
            ],
            "quarantined": [asdict(entry) for entry in state.quarantined],
            "notes": state.notes,
            "exchanges_before_round_1": state.exchanges_before_round_1,
            "teachers": [] if baseline is None else list(baseline.teachers),
            "batch_norm": list(state.batch_norm),
        }
        save_state(self._path, tensors, {_KEY: json.dumps(rest, allow_nan=False)})

    def read(self, like: State) -> RunState | None:
        """Return the state of a run that may go on; None before its first save point.

        The nodes of its silos are ``ABSENT``, as nodes have new ids after a restart.

        Args:
            like: a state of the run's architecture.

        Raises:
            FedKDError: the file is damaged or belongs to another run.
        """
        if not self._path.exists():
            for model in model_files(self._path.parent):
                model.unlink()  # of a run that is begun anew
            return None
        if problem := find_checkpoint_problem(self._path):
            raise FedKDError(f"{problem}; {_REMEDY}")
        try:
            rest = parse_json(read_metadata(self._path)[_KEY])
            if rest["fingerprint"] != self._fingerprint:
                raise FedKDError(
                    f"{self._path} belongs to another study, arm, seed or version of fedkd; "
                    f"{_REMEDY}"
                )
            state = _parse(rest, load_file(self._path), self.folder)
        except (
            *(SafetensorError, OSError, RecursionError),
            *(ValueError, TypeError, KeyError, AttributeError),
        ) as error:
            raise FedKDError(f"{self._path} is damaged ({error}); {_REMEDY}") from error
        whole = [state.model | own for own in state.batch_norm.values()]
        for problem in filter(None, (mismatch(each, like) for each in (state.model, *whole))):
            raise FedKDError(f"{self._path} is damaged: {problem}; {_REMEDY}")
        return state


_REMEDY = "remove it to begin this run anew"


def _parse(rest: dict[str, Any], tensors: State, folder: Path) -> RunState:
    curve = [build(Point, each) for each in rest["curve"]]
    if not curve or [point.round for point in curve] != list(range(len(curve))):
        raise ValueError("it does not hold every round")
    baseline = None
    if _START in tensors:
        teachers = {silo: tensors[_TEACHER + silo] for silo in rest["teachers"]}
        baseline = Baseline(tensors[_START], teachers, tensors.get(_STUDENT))
    state = RunState(
        folder,
        curve,
        update=_part(tensors, _UPDATE),
        batch_norm={silo: _part(tensors, f"{_BATCH_NORM}{silo}/") for silo in rest["batch_norm"]},
        members=tuple(
            Member(each["name"], ABSENT, _parse_description(each["description"]))
            for each in rest["members"]
        ),
        quarantined=[build(Quarantined, entry) for entry in rest["quarantined"]],
        notes=dict(rest["notes"]),
        exchanges_before_round_1=int(rest["exchanges_before_round_1"]),
        baseline=baseline,
    )
    state.model = _part(tensors, _MODEL)
    return state


def _parse_description(values: dict[str, Any]) -> Description:
    return Description(**{**values, "class_counts": tuple(values["class_counts"])})


def read_exchanges(folder: Path) -> int | None:
    """Return what the start of an unfinished run has cost; None without a save point."""
    path = folder / PROGRESS_FILE
    if not path.is_file() or find_checkpoint_problem(path):
        return None
    try:
        return int(parse_json(read_metadata(path)[_KEY])["exchanges_before_round_1"])
    except (ValueError, TypeError, KeyError):
        return None


def fingerprint(context: RunContext) -> str:
    """Hash all that determines a run's bits: the arm's settings, seed, data, code, machine.

    Targets are left out, and so is the number of rounds where no learning rate depends on it: they
    decide when a run ends, and a run that has ended may go on.
    """
    study, rounds, checkpoint = context.study, context.rounds, context.arm.checkpoint
    what, backbone = f"arms.{context.arm_name}.checkpoint", context.shape.backbone
    archs = sorted({context.arch, *map(study.arch_of, study.silo_names)})
    own = [arch_fingerprint(arch, study.model.files, backbone) for arch in archs]
    own += function_keys(study, context.arm_name)
    data: list[Images | None] = [context.test, context.validation, context.transfer]
    shared = {key: value for key, value in study.to_dict().items() if key not in _OTHERS}
    shared["engine"] = study.engine.model_dump(exclude={"workers"})
    return cache_key(
        {
            "kind": "progress",
            "study": shared,
            "name": context.arm_name,
            "arm": context.arm.model_dump(exclude={"rounds", "tuned"}),
            "rounds": rounds.model_dump(exclude=None if rounds.length_decides_rates else {"max"}),
            "checkpoint": None if checkpoint is None else find_given(checkpoint, what=what).key(),
            "seed": context.seed,
            "data": ["none" if part is None else content_hash(part.images) for part in data],
            "own": own,
        }
    )


def _part(tensors: State, prefix: str) -> State:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
