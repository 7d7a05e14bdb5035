"""The record of a run: its curve, written one line per round, and its final state."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from fedkd.errors import FedKDError
from fedkd.registry import metric_key
from fedkd.util.files import parse_json, write_json, write_text

ROUNDS_FILE = "rounds.jsonl"
STATE_FILE = "state.json"
CHECKPOINT_FILE = "checkpoint.safetensors"
BEST_FILE = "best.safetensors"
"""The model that is best on the server's validation examples; see ``rounds.keep``."""
PROGRESS_FILE = "progress.safetensors"
"""State of an unfinished run; see :mod:`strategies.savepoint`."""

_MODEL_FILE = r"^(checkpoint|best|round-[0-9]{4,9})\.safetensors$"
ModelFile = Annotated[str, Field(pattern=_MODEL_FILE)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1 + 1e-9)]
"""In [0, 1]; means of shares may be larger by rounding."""
Stopped = Literal["targets", "budget", "quorum", "interrupted"]
CUT_SHORT = frozenset({"quorum", "interrupted"})
"""Stop reasons from which a run can be resumed."""


@dataclass(frozen=True)
class Point:
    """One round of a curve; round 0 is the start. Costs are of that round alone.

    Attributes:
        round: the round's number.
        accuracy: of the global model after the round, in [0, 1].
        loss: mean cross-entropy in nats, None if it is not finite.
        bytes_up: from the silos to the server.
        bytes_down: from the server to the silos.
        seconds: sending, training and aggregation, without pre-training and evaluation.
        silos_ok: replies used.
        silos_failed: replies missing or refused.
        macro_f1: mean F1 over classes; over several silos, the mean of theirs.
        metrics: every metric by its key, on all examples together; None for one that is not defined
            or not known. Empty in records of earlier versions.
    """

    round: Count
    accuracy: Share
    loss: Finite | None
    bytes_up: Count
    bytes_down: Count
    seconds: Seconds
    silos_ok: Count
    silos_failed: Count
    macro_f1: Share | None = None
    metrics: dict[str, Share | None] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """Return a metric by its name in study files; None where it is not known."""
        return self.accuracy if metric == "accuracy" else self.metrics.get(metric_key(metric))

    def reaches(self, target: float, metric: str) -> bool:
        """Whether a metric is known and at least ``target``."""
        value = self.value(metric)
        return value is not None and value >= target


@dataclass(frozen=True)
class Quarantined:
    """A silo whose reply was not used in a round (0: the start), and why."""

    silo: str
    round: Count
    reason: str


SiloGets = dict[str, str | int | Finite | None]
"""What a silo gets from a run; see :func:`fedkd.federation.silos_get.conclude`."""


@dataclass(frozen=True)
class RunRecord:
    """The record of one arm and seed.

    ``metric`` is the one that its targets are in; ``models`` has the SHA-256 of its models' files
    by name.
    """

    arm: str
    seed: int
    engine: str
    curve: tuple[Point, ...]
    stopped: Stopped
    exchanges_before_round_1: Count
    max_rounds: Count
    targets: tuple[Finite, ...] = ()
    accuracy_source: Literal["test", "silos"] = "test"
    cached: bool = False
    quarantined: tuple[Quarantined, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    instruments: dict[str, Any] = field(default_factory=dict)
    metric: str = "accuracy"
    silos_get: tuple[SiloGets, ...] = ()
    models: dict[ModelFile, Sha256] = field(default_factory=dict)

    @property
    def budget(self) -> int:
        """Exchanges of a run that uses all its rounds."""
        return self.exchanges_before_round_1 + self.max_rounds

    @property
    def uncharged(self) -> bool:
        """Whether it started from a model whose making cost exchanges that are not known."""
        start = self.notes.get("checkpoint")
        return isinstance(start, dict) and bool(start.get("uncharged"))

    def reached(self, target: float) -> int | None:
        """The first round whose metric is at least ``target``, or None."""
        return next((p.round for p in self.curve if p.reaches(target, self.metric)), None)

    @property
    def best(self) -> float | None:
        """The highest value of the run's metric; None where it is not known."""
        values = [v for point in self.curve if (v := point.value(self.metric)) is not None]
        return max(values, default=None)

    def cost(self, target: float) -> dict[str, Any]:
        """Return the cost of reaching ``target``; all values are None if it was not reached."""
        reached = self.reached(target)
        if reached is None:
            return dict.fromkeys(("round", "exchanges", "bytes", "seconds"))
        used = self.curve[: reached + 1]
        return {
            "round": reached,
            "exchanges": reached + self.exchanges_before_round_1,
            "bytes": sum(p.bytes_up + p.bytes_down for p in used),
            "seconds": sum(p.seconds for p in used),
        }

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """Read a finished run from its folder.

        Raises:
            FedKDError: the run did not finish, or its files are inconsistent.
        """
        try:
            state = parse_json((folder / STATE_FILE).read_text(encoding="utf-8"))
            curve = read_points(folder)
            num_points = state.pop("num_points")
            record: RunRecord = build(cls, {**state, "curve": curve})
        except (
            *(OSError, ValueError, TypeError),
            *(KeyError, AttributeError, RecursionError),
        ) as error:
            reason = " ".join(str(error).split())[:300]
            raise FedKDError(f"{folder} does not contain a finished run: {reason}") from error
        complete = bool(curve) and len(curve) == num_points
        if not complete or [p.round for p in curve] != list(range(num_points)):
            raise FedKDError(f"{folder / ROUNDS_FILE} does not contain every round of the run")
        return record


def model_files(folder: Path) -> list[Path]:
    """Return the models that a run has left in its folder, by name."""
    return [path for path in sorted(folder.glob("*.safetensors")) if is_model_file(path.name)]


def is_model_file(name: str) -> bool:
    """Whether a run gives this name to the file of a model: the final one or one of its rounds."""
    return bool(re.fullmatch(_MODEL_FILE, name))


def build(kind: Any, value: Any) -> Any:
    """Build a record, or a part of one, from plain values, each of them checked.

    Raises:
        ValueError: one has another type or range, is missing, or is unknown.
        TypeError: ``value`` is not a mapping where one is needed.
    """
    if is_dataclass(kind) and (unknown := set(value) - {each.name for each in fields(kind)}):
        raise ValueError(f"{sorted(unknown)[0]!r} is not a key of it")
    return _adapter(kind).validate_python(value)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_points(folder: Path) -> tuple[Point, ...]:
    """Read the curve; an incomplete last line, left by a kill, is ignored."""
    points: list[Point] = []
    path = folder / ROUNDS_FILE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    for line in text.splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        points.append(build(Point, parse_json(line)))
    return tuple(points)


def write_state(folder: Path, record: RunRecord) -> None:
    """Write all but the curve to ``state.json``; its presence marks the run as finished."""
    state = asdict(record)
    state["num_points"] = len(state.pop("curve"))
    write_json(folder / STATE_FILE, state)


def write_points(folder: Path, points: Sequence[Point]) -> None:
    """Make ``rounds.jsonl`` contain exactly these points, atomically; rewrite it only if needed.

    An empty curve has no file.
    """
    path = folder / ROUNDS_FILE
    if not points:
        path.unlink(missing_ok=True)
        return
    text = "".join(_line(point) for point in points)
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def append_point(folder: Path, point: Point) -> None:
    """Append one line to ``rounds.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ROUNDS_FILE).open("a", encoding="utf-8") as file:
        file.write(_line(point))


def _line(point: Point) -> str:
    return json.dumps(asdict(point), allow_nan=False) + "\n"
