"""Collecting what silos know: their models or predictions, and how familiar images are to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd import wire
from fedkd.checkpoint import copy_state
from fedkd.data.images import content_hash
from fedkd.distillation.familiarity import Basis, density_bound
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.errors import FedKDError
from fedkd.study import Consolidation
from strategies.exchange import Ledger, Member, exchange
from strategies.gate import (
    RefusedError,
    read_class_counts,
    read_density,
    read_info,
    read_logits,
    read_num_examples,
    read_state,
)
from strategies.setting import Setting


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
    return Teachers(teachers, setting.shape, setting.compute)


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
    counts = read_class_counts(member.info, setting.shape.num_classes)
    return Teacher(member.name, arch, size, state, logits, log_density, counts)
