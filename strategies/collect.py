"""Collecting what silos know: their models or predictions, and how familiar images are to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedkd.config import Consolidation
from fedkd.data.images import content_hash
from fedkd.distillation.density.basis import Basis, FeatureBasis
from fedkd.distillation.density.estimators import density_bound
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.errors import FedKDError
from fedkd.messages import keys
from fedkd.messages.basis import write_basis
from fedkd.messages.moments import read_moments
from fedkd.messages.validate import (
    RefusedError,
    read_class_counts,
    read_density,
    read_info,
    read_logits,
    read_num_examples,
    read_state,
)
from fedkd.models.state import copy_state
from strategies.context import RunContext
from strategies.exchange import Ledger, Member, exchange


def collect_teachers(
    grid: Grid,
    members: Sequence[Member],
    context: RunContext,
    ledger: Ledger,
    run_id: str,
    settings: Consolidation | None = None,
    basis: Basis | None = None,
) -> Teachers:
    """Ask every silo for its model or predictions: one exchange.

    Args:
        grid: the way to the nodes.
        members: the silos.
        context: the run.
        ledger: the books.
        run_id: what replies must echo.
        settings: of the consolidation; None asks for models alone.
        basis: what densities are told in; None asks for no densities.

    Raises:
        FedKDError: no silo gave anything usable.
    """
    mode = settings.mode if settings else keys.MODE_WEIGHTS
    question = _question(context, run_id, mode, settings, basis)
    replies = _ask(grid, members, question, context, ledger)
    teachers = []
    for member in members:
        try:
            info = _read_echo(replies, member, run_id, question)
            teachers.append(_read_teacher(replies, info, member, context, question, basis))
            ledger.traffic.ok += 1
        except RefusedError as error:
            ledger.refuse(member.name, error)
    return Teachers(_some(teachers, context, ledger), context.shape, context.compute)


def collect_densities(
    grid: Grid,
    members: Sequence[Member],
    teachers: Teachers,
    context: RunContext,
    ledger: Ledger,
    run_id: str,
    settings: Consolidation,
    basis: Basis,
) -> Teachers:
    """Ask the silos whose models were used for densities in a basis made of them: one exchange.

    A silo whose reply is refused has no density, like one that is too small, so that its model
    teaches with an equal share; where densities alone teach, it is left out. It then counts among
    the round's failed silos, not among those that answered well.

    Args:
        grid: the way to the nodes.
        members: all silos.
        teachers: their models.
        context: the run.
        ledger: the books.
        run_id: what replies must echo.
        settings: of the consolidation.
        basis: what densities are told in.

    Raises:
        FedKDError: densities alone should teach and no silo told any.
    """
    by_name = {member.name: member for member in members}
    asked = [by_name[teacher.silo] for teacher in teachers.members]
    question = _question(context, run_id, keys.MODE_NONE, settings, basis)
    replies = _ask(grid, asked, question, context, ledger)
    told = []
    for member, teacher in zip(asked, teachers.members, strict=True):
        try:
            _read_echo(replies, member, run_id, question)
            told.append(_add_densities(teacher, replies[member.node_id], context, question, basis))
        except RefusedError as error:
            ledger.traffic.ok -= 1
            ledger.refuse(member.name, error)
            if settings.teachers != "densities":
                told.append(teacher)
    return Teachers(_some(told, context, ledger), context.shape, context.compute)


def _some(teachers: list[Teacher], context: RunContext, ledger: Ledger) -> list[Teacher]:
    if not teachers:
        reasons = "; ".join(sorted({f"{q.silo}: {q.reason}" for q in ledger.quarantined})[:3])
        raise FedKDError(
            f"arms.{context.arm_name}: no silo's pre-trained model can be used ({reasons})"
        )
    return teachers


def _ask(
    grid: Grid, members: Sequence[Member], question: RecordDict, context: RunContext, ledger: Ledger
) -> dict[int, Message]:
    messages = [Message(_for(member, question), member.node_id, keys.TEACHER) for member in members]
    return exchange(
        grid,
        messages,
        timeout=context.rounds.timeout,
        traffic=ledger.traffic,
        simulated=context.simulated,
    )


def _for(member: Member, question: RecordDict) -> RecordDict:
    """Leave the transfer images out for a silo that has them; their hash binds its answer."""
    if member.info.get(keys.HOLDS_TRANSFER) is not True:
        return question
    return RecordDict({key: value for key, value in question.items() if key != keys.TRANSFER})


def _question(
    context: RunContext,
    run_id: str,
    mode: str,
    settings: Consolidation | None,
    basis: Basis | None,
) -> RecordDict:
    """Write ``query.teacher``; images go along only where a silo must look at them."""
    config: dict[str, str | int] = {
        keys.RUN_ID: run_id,
        keys.ROUND: 0,
        keys.MODE: mode,
        keys.DENSITY: keys.DENSITY_NONE,
    }
    records: dict[str, ArrayRecord | ConfigRecord] = {}
    seen = basis is not None and not (settings and settings.uses_moments)
    if context.transfer is not None and (mode == keys.MODE_LOGITS or seen):
        images = context.transfer.images
        config[keys.TRANSFER_HASH] = content_hash(images)
        records[keys.TRANSFER] = ArrayRecord({keys.IMAGES: Array(images.numpy())})
    if settings and basis is not None:
        per_class = keys.DENSITY_CLASS if settings.joint_densities else keys.DENSITY_SAMPLE
        config[keys.DENSITY] = keys.DENSITY_MOMENTS if settings.uses_moments else per_class
        config[keys.DENSITY_KIND] = settings.familiarity.density
        config[keys.NEIGHBOURS] = settings.familiarity.neighbours
        records[keys.BASIS] = write_basis(basis)
    if isinstance(basis, FeatureBasis):
        config[keys.ARCHITECTURE] = context.arch
        records[keys.BASIS_MODEL] = ArrayRecord(copy_state(basis.model))
    records[keys.CONFIG] = ConfigRecord(dict(config))
    return RecordDict(dict(records))


def _read_echo(
    replies: Mapping[int, Message], member: Member, run_id: str, question: RecordDict
) -> ConfigRecord:
    """Return the ``info`` of a silo's reply once it is known to answer this very question."""
    if member.node_id not in replies:
        raise RefusedError("it did not answer in time")
    info = read_info(replies[member.node_id], run_id=run_id, round_number=0)
    if info.get(keys.SILO) != member.name:
        raise RefusedError("its reply bears another silo's name")
    asked = question.config_records[keys.CONFIG]
    if keys.TRANSFER_HASH in asked and info.get(keys.TRANSFER_HASH) != asked[keys.TRANSFER_HASH]:
        raise RefusedError("it answered for another transfer set")
    return info


def _read_teacher(
    replies: Mapping[int, Message],
    info: ConfigRecord,
    member: Member,
    context: RunContext,
    question: RecordDict,
    basis: Basis | None,
) -> Teacher:
    reply = replies[member.node_id]
    size = read_num_examples(info, context.rounds.max_examples)
    arch = str(member.info[keys.ARCHITECTURE])
    record = reply.content.array_records.get(keys.TEACHER_RECORD)
    state = logits = None
    if question.config_records[keys.CONFIG][keys.MODE] == keys.MODE_WEIGHTS:
        state = read_state(record, copy_state(context.model("teacher", arch)))
    else:
        num_samples = len(context.transfer) if context.transfer is not None else 0
        logits = read_logits(record, num_samples, context.shape.num_classes)
    counts = read_class_counts(member.info, context.shape.num_classes)
    teacher = Teacher(member.name, arch, size, state, logits, class_counts=counts)
    return _add_densities(teacher, reply, context, question, basis)


def _add_densities(
    teacher: Teacher, reply: Message, context: RunContext, question: RecordDict, basis: Basis | None
) -> Teacher:
    """Return the teacher with its silo's densities, unless an honest one is too small for any."""
    record = reply.content.array_records.get(keys.FAMILIARITY)
    if record is None or basis is None:
        return teacher
    asked = question.config_records[keys.CONFIG]
    if asked[keys.DENSITY] == keys.DENSITY_MOMENTS:
        of = (context.shape.num_classes, len(basis.components))
        moments = read_moments(record, of, teacher.num_examples, basis.max_norm)
        return replace(teacher, moments=moments)
    shape: tuple[int, ...] = (len(context.transfer) if context.transfer is not None else 0,)
    if asked[keys.DENSITY] == keys.DENSITY_CLASS:
        shape = (*shape, context.shape.num_classes)
    bound = density_bound(str(asked[keys.DENSITY_KIND]), len(basis.components))
    return replace(teacher, log_density=read_density(record, shape, bound))
