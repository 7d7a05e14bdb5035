"""Collecting what silos know: their models or predictions, and how familiar images are to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from fedkd import wire
from fedkd.checkpoint import State, average_states, copy_state
from fedkd.data.images import content_hash
from fedkd.distillation.familiarity import Basis, density_bound
from fedkd.errors import FedKDError
from fedkd.study import Consolidation
from fedkd.training import evaluate, predict
from strategies.exchange import Ledger, Member, exchange
from strategies.gate import (
    RefusedError,
    read_density,
    read_info,
    read_logits,
    read_num_examples,
    read_state,
)
from strategies.setting import Setting


@dataclass(frozen=True)
class Teacher:
    """One silo's contribution.

    Attributes:
        silo: its name.
        arch: architecture of its model.
        num_examples: size of its data.
        state: its model, unless it sent only predictions.
        logits: its predictions on the transfer set, fp32 ``[N, C]``, if it sent them.
        log_density: float64 ``[N]`` or joint ``[N, C]`` in nats, if asked for and to be had.
    """

    silo: str
    arch: str
    num_examples: int
    state: State | None
    logits: Tensor | None
    log_density: Tensor | None

    def predictions(self, images: Tensor, setting: Setting) -> Tensor:
        """Return logits ``[N, C]`` on uint8 images."""
        if self.logits is not None:
            return self.logits
        if self.state is None:
            raise ValueError(f"{self.silo} sent neither a model nor predictions")
        model = setting.model("teacher", self.arch)
        model.load_state_dict(self.state)
        return predict(model, images, compute=setting.compute)


@dataclass(frozen=True)
class Teachers:
    """All usable contributions, in natural order of the silos' names; at least one."""

    members: tuple[Teacher, ...]

    def states(self) -> list[State]:
        """All models; an error where a silo sent only predictions."""
        states = [teacher.state for teacher in self.members if teacher.state is not None]
        if len(states) < len(self.members):
            raise ValueError("a silo sent predictions where its model is needed")
        return states

    def average(self) -> State:
        """Average the models, weighted by examples as a round of FedAvg would."""
        return average_states(self.states(), [float(t.num_examples) for t in self.members])

    def best(self, setting: Setting) -> State:
        """Return the model most accurate on validation data; the first of equals."""
        scores = []
        for state in self.states():
            model = setting.model("teacher")
            model.load_state_dict(state)
            scores.append(evaluate(model, setting.validation, compute=setting.compute).accuracy)
        return self.states()[scores.index(max(scores))]


def collect_teachers(
    grid: Grid,
    members: Sequence[Member],
    setting: Setting,
    ledger: Ledger,
    run_id: str,
    settings: Consolidation | None = None,
    basis: Basis | None = None,
) -> Teachers:
    """Ask every silo for its model or predictions: one exchange.

    Args:
        grid: the way to the nodes.
        members: the silos.
        setting: the run.
        ledger: the books.
        run_id: what replies must echo.
        settings: of the consolidation; None asks for models alone.
        basis: what densities are told in; None asks for no densities.

    Raises:
        FedKDError: no silo gave anything usable.
    """
    content, density = _question(setting, run_id, settings, basis)
    messages = [Message(content, member.node_id, wire.TEACHER) for member in members]
    replies = exchange(grid, messages, timeout=setting.rounds.timeout, traffic=ledger.traffic)
    teachers = []
    for member in members:
        try:
            if member.node_id not in replies:
                raise RefusedError("it did not answer in time")
            reply = replies[member.node_id]
            teachers.append(_read_teacher(reply, member, setting, run_id, content, density, basis))
            ledger.traffic.ok += 1
        except RefusedError as error:
            ledger.refuse(member.name, error)
    if not teachers:
        reasons = "; ".join(sorted({f"{q.silo}: {q.reason}" for q in ledger.quarantined})[:3])
        raise FedKDError(
            f"arms.{setting.arm_name}: no silo's pre-trained model can be used ({reasons})"
        )
    return Teachers(tuple(teachers))


def _question(
    setting: Setting, run_id: str, settings: Consolidation | None, basis: Basis | None
) -> tuple[RecordDict, str]:
    """Write ``query.teacher``; images go along only where a silo must look at them."""
    mode = settings.mode if settings else wire.MODE_WEIGHTS
    density = wire.DENSITY_NONE
    if settings and basis is not None:
        per_class = settings.teachers == "densities"
        density = wire.DENSITY_CLASS if per_class else wire.DENSITY_SAMPLE
    config: dict[str, str | int] = {
        wire.RUN_ID: run_id,
        wire.ROUND: 0,
        wire.MODE: mode,
        wire.DENSITY: density,
    }
    records: dict[str, ArrayRecord | ConfigRecord] = {}
    if setting.transfer is not None and (mode == wire.MODE_LOGITS or basis is not None):
        images = setting.transfer.images
        config[wire.TRANSFER_HASH] = content_hash(images)
        records[wire.TRANSFER] = ArrayRecord({wire.IMAGES: Array(images.numpy())})
    if settings and basis is not None:
        config[wire.DENSITY_KIND] = settings.familiarity.density
        config[wire.NEIGHBOURS] = settings.familiarity.neighbours
        records[wire.BASIS] = ArrayRecord(
            {
                wire.BASIS_MEAN: Array(basis.mean.numpy()),
                wire.BASIS_COMPONENTS: Array(basis.components.numpy()),
                wire.BASIS_SIDE: Array(torch.tensor(basis.side).numpy()),
            }
        )
    records[wire.CONFIG] = ConfigRecord(dict(config))
    return RecordDict(dict(records)), density


def _read_teacher(
    reply: Message,
    member: Member,
    setting: Setting,
    run_id: str,
    question: RecordDict,
    density: str,
    basis: Basis | None,
) -> Teacher:
    info = read_info(reply, run_id=run_id, round_number=0)
    if info.get(wire.SILO) != member.name:
        raise RefusedError("its reply bears another silo's name")
    asked = question.config_records[wire.CONFIG]
    if wire.TRANSFER_HASH in asked and info.get(wire.TRANSFER_HASH) != asked[wire.TRANSFER_HASH]:
        raise RefusedError("it answered for another transfer set")
    size = read_num_examples(info)
    arch = str(member.info[wire.ARCHITECTURE])
    record = reply.content.array_records.get(wire.TEACHER_RECORD)
    num_samples = len(setting.transfer) if setting.transfer is not None else 0
    state = logits = log_density = None
    if asked[wire.MODE] == wire.MODE_WEIGHTS:
        state = read_state(record, copy_state(setting.model("teacher", arch)))
    else:
        logits = read_logits(record, num_samples, setting.shape.num_classes)
    familiarity = reply.content.array_records.get(wire.FAMILIARITY)
    if familiarity is not None and basis is not None:
        shape: tuple[int, ...] = (num_samples,)
        if density == wire.DENSITY_CLASS:
            shape = (num_samples, setting.shape.num_classes)
        bound = density_bound(str(asked[wire.DENSITY_KIND]), len(basis.components))
        log_density = read_density(familiarity, shape, bound)
    return Teacher(member.name, arch, size, state, logits, log_density)
