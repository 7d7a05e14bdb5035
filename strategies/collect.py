"""Collect what silos share before round 1: their models or predictions, densities or moments."""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import RecordDict

from fedkd.config import Consolidation
from fedkd.distillation.density.basis import Basis
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.errors import FedKDError
from fedkd.messages import keys, teacher
from fedkd.messages.envelope import Question
from fedkd.messages.teacher import Expected, Wanted
from fedkd.models.state import copy_state
from strategies.context import RunContext
from strategies.roster import Member
from strategies.session import Session


def collect_teachers(
    session: Session, settings: Consolidation | None = None, basis: Basis | None = None
) -> Teachers:
    """Ask every silo for its model or predictions: one exchange.

    Args:
        session: with the silos.
        settings: of the consolidation; None asks for models alone.
        basis: in which densities or moments are computed; None asks for none.

    Raises:
        FedKDError: no silo gave anything usable.
    """
    mode = settings.mode if settings else keys.MODE_WEIGHTS
    terms = _Terms.of(session.context, mode, settings, basis)
    # Built before anything is read: what an architecture raises is not a fault of a reply.
    archs = {member.known.arch for member in session.members}
    like = {arch: copy_state(session.context.model("teacher", arch)) for arch in archs}

    def read(member: Member, content: RecordDict) -> Teacher:
        silo = member.known
        known = Teacher(member.name, silo.arch, 0, class_counts=silo.class_counts)
        return teacher.read_reply(content, terms.expected, known, like[silo.arch])

    answers = session.ask(session.members, terms.question, read)
    return _gather([collected for _, collected in answers], session)


def collect_densities(
    session: Session, teachers: Teachers, settings: Consolidation, basis: Basis
) -> Teachers:
    """Ask the silos of teachers for densities in a basis made of their models: one exchange.

    A silo whose reply is refused has no density, like one that is too small, so that its model
    has an equal share; under ``teachers: densities`` it is left out. It then counts among the
    round's failed silos, not among those whose replies were used.

    Raises:
        FedKDError: densities alone should teach and no silo sent any.
    """
    terms = _Terms.of(session.context, keys.MODE_NONE, settings, basis)
    by_silo = {teacher.silo: teacher for teacher in teachers.members}

    def read(member: Member, content: RecordDict) -> Teacher:
        return teacher.read_densities(content, terms.expected, by_silo[member.name])

    members = [session.roster[silo] for silo in by_silo]
    answers = session.ask(members, terms.question, read)
    with_densities = {member.name: described for member, described in answers}
    if settings.teachers == "densities":
        return _gather(list(with_densities.values()), session)
    return _gather([with_densities.get(silo, known) for silo, known in by_silo.items()], session)


@dataclass(frozen=True)
class _Terms:
    """A question about teachers, and what its replies are compared with."""

    question: Question
    expected: Expected

    @classmethod
    def of(
        cls, context: RunContext, mode: str, settings: Consolidation | None, basis: Basis | None
    ) -> _Terms:
        wanted = Wanted(mode)
        if settings and basis is not None:
            wanted = Wanted.by(mode, settings)
        images = None if context.transfer is None else context.transfer.images
        return cls(
            teacher.write_question(
                wanted,
                transfer=images,
                basis=basis,
                arch=context.arch,
                deployed=context.study.is_deployed,
            ),
            Expected(
                wanted,
                basis,
                num_images=0 if images is None else len(images),
                num_classes=context.shape.num_classes,
                max_examples=context.rounds.max_examples,
            ),
        )


def _gather(members: list[Teacher], session: Session) -> Teachers:
    context = session.context
    if not members:
        entries = session.ledger.quarantined
        reasons = "; ".join(sorted({f"{entry.silo}: {entry.reason}" for entry in entries})[:3])
        raise FedKDError(
            f"arms.{context.arm_name}: no silo's pre-trained model can be used ({reasons})"
        )
    return Teachers(members, context.shape, context.compute, recalibrate_on=context.recalibrate_on)
