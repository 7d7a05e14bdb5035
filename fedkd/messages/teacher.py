"""``query.teacher``: silos share models or predictions, and densities or moments."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedkd.config import Consolidation
from fedkd.data.images import content_hash
from fedkd.distillation.density.basis import Basis, FeatureBasis
from fedkd.distillation.density.estimators import density_bound
from fedkd.distillation.teachers import Teacher
from fedkd.messages import keys
from fedkd.messages.arrays import decode
from fedkd.messages.basis import write_basis
from fedkd.messages.envelope import Question, read_config, read_info, read_whole_number
from fedkd.messages.moments import read_moments, write_moments
from fedkd.messages.validate import (
    MAX_LOGIT,
    RefusedError,
    read_array,
    read_num_examples,
    read_state,
)
from fedkd.models.state import State, copy_state


@dataclass(frozen=True)
class Wanted:
    """What silos are asked to share.

    Attributes:
        mode: their models (``weights``), predictions on the transfer examples (``logits``) or
            neither (``none``).
        density: log-densities of the transfer examples (``sample``), joint with their classes
            (``class``), ``moments`` of their own examples, or ``none``.
        kind: ``gaussian``, ``knn`` or, of moments, ``pooled``; of no meaning without densities.
        neighbours: k of ``knn``; likewise.
    """

    mode: str
    density: str = keys.DENSITY_NONE
    kind: str = ""
    neighbours: int = 0

    @classmethod
    def by(cls, mode: str, settings: Consolidation) -> Wanted:
        """Return what a consolidation with densities asks for, beside ``mode``."""
        per_class = keys.DENSITY_CLASS if settings.joint_densities else keys.DENSITY_SAMPLE
        return cls(
            mode,
            density=keys.DENSITY_MOMENTS if settings.uses_moments else per_class,
            kind=settings.familiarity.density,
            neighbours=settings.familiarity.neighbours,
        )

    @property
    def needs_images(self) -> bool:
        """Whether silos must see the transfer examples."""
        return self.mode == keys.MODE_LOGITS or self.density in (
            keys.DENSITY_SAMPLE,
            keys.DENSITY_CLASS,
        )


def write_question(
    wanted: Wanted,
    *,
    transfer: Tensor | None,
    basis: Basis | None,
    arch: str,
    deployed: bool = False,
) -> Question:
    """Ask for what is wanted; examples are sent only where a silo must see them.

    Args:
        wanted: what to share.
        transfer: examples ``[N, ...]``, or None.
        basis: in which densities or moments are computed; None without them.
        arch: architecture of the model of a basis of features.
        deployed: whether silos make the basis themselves, and so need the examples for moments too.
    """
    config: dict[str, str | int] = {keys.MODE: wanted.mode, keys.DENSITY: wanted.density}
    records: dict[str, ArrayRecord] = {}
    transfer_hash = None
    needs_basis = deployed and wanted.density != keys.DENSITY_NONE
    if transfer is not None and (wanted.needs_images or needs_basis):
        transfer_hash = content_hash(transfer)
        records[keys.TRANSFER] = ArrayRecord({keys.IMAGES: Array(transfer.numpy())})
    if wanted.density != keys.DENSITY_NONE and basis is not None:
        config[keys.DENSITY_KIND] = wanted.kind
        config[keys.NEIGHBOURS] = wanted.neighbours
        records[keys.BASIS] = write_basis(basis)
    if isinstance(basis, FeatureBasis):
        config[keys.ARCHITECTURE] = arch
        records[keys.BASIS_MODEL] = ArrayRecord(copy_state(basis.model))
    return Question(keys.TEACHER, 0, config, records, transfer_hash)


def read_wanted(content: RecordDict) -> Wanted:
    """Return what the server asks for, at the silo, whether or not it makes sense."""
    config = read_config(content)
    return Wanted(
        mode=str(config.get(keys.MODE)),
        density=str(config.get(keys.DENSITY)),
        kind=str(config.get(keys.DENSITY_KIND, "")),
        neighbours=read_whole_number({keys.NEIGHBOURS: 0, **config}, keys.NEIGHBOURS),
    )


def read_images(content: RecordDict) -> Tensor | None:
    """Return the transfer examples that were sent ``[N, ...]``; None if none were."""
    record = content.array_records.get(keys.TRANSFER)
    return None if record is None else torch.from_numpy(decode(record[keys.IMAGES]))


def write_reply(teacher: Teacher, *, transfer_hash: str | None) -> RecordDict:
    """Write what a silo shares.

    Args:
        teacher: its model or predictions, and densities or moments, as far as it has them.
        transfer_hash: of the transfer examples that it saw, or None.
    """
    reply = RecordDict({keys.INFO: _info(teacher.num_examples, transfer_hash)})
    if teacher.state is not None:
        reply[keys.TEACHER_RECORD] = ArrayRecord(teacher.state)
    elif teacher.logits is not None:
        reply[keys.TEACHER_RECORD] = ArrayRecord({keys.LOGITS: teacher.logits})
    if teacher.moments is not None:
        reply[keys.FAMILIARITY] = write_moments(teacher.moments)
    elif teacher.log_density is not None:
        density = teacher.log_density.float()
        reply[keys.FAMILIARITY] = ArrayRecord({keys.LOG_DENSITY: density})
    return reply


def write_problem(problem: str, *, num_examples: int, transfer_hash: str | None) -> RecordDict:
    """Write that a silo has no model to share, and why."""
    info = _info(num_examples, transfer_hash)
    info[keys.PROBLEM] = problem
    return RecordDict({keys.INFO: info})


def _info(num_examples: int, transfer_hash: str | None) -> ConfigRecord:
    info = ConfigRecord({keys.NUM_EXAMPLES: num_examples})
    if transfer_hash is not None:
        info[keys.TRANSFER_HASH] = transfer_hash
    return info


@dataclass(frozen=True)
class Expected:
    """What replies are compared with.

    Attributes:
        wanted: what was asked for.
        basis: in which densities or moments were asked for; None without them.
        num_images: N, of the transfer set.
        num_classes: C.
        max_examples: most examples that a silo may have.
    """

    wanted: Wanted
    basis: Basis | None
    num_images: int
    num_classes: int
    max_examples: int


def read_reply(content: RecordDict, expected: Expected, known: Teacher, like: State) -> Teacher:
    """Return what a silo shares.

    Args:
        content: of its reply.
        expected: what the reply is compared with.
        known: the silo's description.
        like: a state of its architecture.

    Raises:
        RefusedError: something is missing or not valid.
    """
    size = read_num_examples(read_info(content), expected.max_examples)
    record = _arrays(content, keys.TEACHER_RECORD)
    state = logits = None
    if expected.wanted.mode == keys.MODE_WEIGHTS:
        state = read_state(record, like)
    else:
        logits = _read_logits(record, expected.num_images, expected.num_classes)
    teacher = replace(known, num_examples=size, state=state, logits=logits)
    return read_densities(content, expected, teacher)


def read_densities(content: RecordDict, expected: Expected, teacher: Teacher) -> Teacher:
    """Return the teacher with its silo's densities or moments.

    An honest silo that is too small sends none.

    Raises:
        RefusedError: they are not valid.
    """
    record, basis = _arrays(content, keys.FAMILIARITY), expected.basis
    if record is None or basis is None:
        return teacher
    wanted = expected.wanted
    if wanted.density == keys.DENSITY_MOMENTS:
        shape = (expected.num_classes, len(basis.components))
        moments = read_moments(record, shape, teacher.num_examples, basis.max_norm)
        return replace(teacher, moments=moments)
    of_images: tuple[int, ...] = (expected.num_images,)
    if wanted.density == keys.DENSITY_CLASS:
        of_images = (*of_images, expected.num_classes)
    bound = density_bound(wanted.kind, len(basis.components))
    return replace(teacher, log_density=_read_density(record, of_images, bound))


def _arrays(content: RecordDict, name: str) -> ArrayRecord | None:
    if name in content and name not in content.array_records:
        raise RefusedError(f"its record {name!r} holds no arrays")
    return content.array_records.get(name)


def _read_logits(record: ArrayRecord | None, samples: int, classes: int) -> Tensor:
    """Decode logits ``[N, C]`` of plausible magnitude."""
    if record is None or set(record) != {keys.LOGITS}:
        raise RefusedError("its reply has no logits")
    logits = read_array(record[keys.LOGITS], keys.LOGITS, (samples, classes), torch.float32)
    if float(logits.abs().max()) > MAX_LOGIT:
        raise RefusedError(f"it sent logits beyond {MAX_LOGIT:g}")
    return logits


def _read_density(record: ArrayRecord, shape: tuple[int, ...], bound: float) -> Tensor:
    """Decode log-densities and refuse those above what an honest silo can claim."""
    if set(record) != {keys.LOG_DENSITY}:
        raise RefusedError("its reply has no log-densities")
    density = read_array(record[keys.LOG_DENSITY], keys.LOG_DENSITY, shape, torch.float32).double()
    total = density.logsumexp(1) if len(shape) == 2 else density
    # Rounding to fp32 may lift an honest value by a few parts in ten million.
    if float(total.max()) > bound + 1e-5 * max(1.0, abs(bound)):
        raise RefusedError("it claims densities that no data can have")
    return density


def check_reply_holds_no_more(question: RecordDict, reply: RecordDict) -> None:
    """Compare the arrays of a reply with what was asked for, at the silo.

    Raises:
        ValueError: it holds others.
    """
    wanted = read_wanted(question)
    model, densities = (
        reply.array_records.get(name) for name in (keys.TEACHER_RECORD, keys.FAMILIARITY)
    )
    if model is not None and wanted.mode == keys.MODE_LOGITS and set(model) != {keys.LOGITS}:
        raise ValueError("a model where predictions are asked for")
    if densities is not None:
        of_images = keys.LOG_DENSITY in densities
        if of_images == (wanted.density == keys.DENSITY_MOMENTS):
            raise ValueError("densities where moments are asked for, or moments for densities")
    expected = {keys.TEACHER_RECORD} if wanted.mode != keys.MODE_NONE else set()
    expected |= {keys.FAMILIARITY} if wanted.density != keys.DENSITY_NONE else set()
    if others := set(reply.array_records) - expected:
        raise ValueError(f"arrays {sorted(others)[0]!r}")


def least_moment_count(reply: RecordDict) -> int | None:
    """Return the fewest examples of any class that moments in a reply are of; None without them."""
    record = reply.array_records.get(keys.FAMILIARITY)
    if record is None or keys.MOMENT_COUNTS not in record:
        return None
    counts = decode(record[keys.MOMENT_COUNTS])
    return int(counts[counts > 0].min(initial=2**62))
