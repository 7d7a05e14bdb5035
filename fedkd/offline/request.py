"""The request to consolidate checkpoints, and the check of what of it is possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedkd.config import Consolidation
from fedkd.errors import UserError
from fedkd.models.card import ModelCard
from fedkd.offline.images import OfflineImages
from fedkd.offline.reader import Wanted
from fedkd.registry import ARCHITECTURES, METHODS
from fedkd.util.places import expand


@dataclass(frozen=True)
class TeacherFile:
    """The checkpoint of a teacher, and its architecture if the user names it."""

    path: Path
    arch: str | None = None

    @classmethod
    def parse(cls, text: str) -> TeacherFile:
        """Read ``PATH`` or ``ARCH=PATH``; a file whose own name has a ``=`` is meant as such.

        Raises:
            UserError: what stands before the ``=`` is not a valid architecture.
        """
        arch, equals, name = text.partition("=")
        if not equals or Path(text).exists():
            return cls(Path(text))
        try:
            return cls(expand(name), ARCHITECTURES.check(arch))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--teachers {text}: {error}") from None


@dataclass(frozen=True)
class Offline:
    """Which files to consolidate, and how.

    Attributes:
        teachers: checkpoints, in the order in which they count.
        images: the transfer set and the validation set.
        arch: of the student, and of teachers for which neither user nor file names another.
        settings: of the consolidation, as in a study.
        examples: how many images each teacher was trained on; empty where that is unknown.
        batch_norm: ``average``, or ``recalibrate`` for statistics of an average that are computed
            anew on the transfer set.
        seed: of every random choice.
    """

    teachers: tuple[TeacherFile, ...]
    images: Wanted
    arch: str | None = None
    settings: Consolidation = field(default_factory=Consolidation)
    examples: tuple[int, ...] = ()
    batch_norm: str = "average"
    seed: int = 0


def refuse_what_needs_silos(offline: Offline) -> None:
    """Refuse settings that need silos and their data, or what the user did not give.

    Raises:
        UserError: names the setting, and what to do.
    """
    settings, number = offline.settings, len(offline.teachers)
    if number == 0:
        raise UserError("--teachers: name at least one checkpoint")
    if len({teacher.path.absolute() for teacher in offline.teachers}) < number:
        raise UserError("--teachers: names a file twice")
    if settings.uses_densities:
        raise UserError(
            "weighting: familiarity needs the densities of the transfer images under each silo's "
            "data, which a checkpoint does not hold; use equal, confidence or consensus"
        )
    if settings.weighting == "class-prior":
        raise UserError(
            "weighting: class-prior needs each silo's number of images of each class, which a "
            "checkpoint does not hold; use equal, confidence or consensus"
        )
    if settings.weighting == "size" and not offline.examples:
        raise UserError(
            "weighting: size needs how many images each teacher was trained on; give --examples, "
            "such as --examples 100,200"
        )
    if settings.mode == "logits":
        raise UserError("mode: logits is what silos send; the models are here, so leave it out")
    if offline.examples and len(offline.examples) != number:
        raise UserError(f"--examples: has {len(offline.examples)} numbers for {number} teachers")
    if min(offline.examples, default=1) < 1:
        raise UserError("--examples: every number must be at least 1")
    _check_batch_norm(offline)
    spec = METHODS.spec(settings.method)
    try:
        settings.check_method(spec)
    except ValueError as error:
        raise UserError(str(error)) from None
    by_labels = "labels" in spec.needs and settings.teachers != "validation"
    if by_labels and not offline.images.labelled:
        raise UserError(
            f"method: {settings.method} learns from labels of the transfer set; give --labelled "
            "if they may be used"
        )
    if offline.images.validation is None and (reason := _why_validate(settings)):
        raise UserError(
            f"{reason} uses labelled images that are set apart; give --validation, such as "
            "--validation 0.2"
        )


def _check_batch_norm(offline: Offline) -> None:
    if offline.batch_norm not in ("average", "recalibrate"):
        raise UserError(
            f"--batch-norm: {offline.batch_norm!r} is not valid here; known are average and "
            "recalibrate"
        )
    if offline.batch_norm == "recalibrate" and offline.settings.student != "average":
        raise UserError(
            "--batch-norm: recalibrate computes the statistics of an average, but the student is "
            f"{offline.settings.student}; leave it out, or use --student average"
        )


def _why_validate(settings: Consolidation) -> str:
    """Return the setting that needs validation data, or an empty string."""
    reasons = {
        "weighting: accuracy": settings.weighting == "accuracy",
        "teachers: validation": settings.teachers == "validation",
        f"student: {settings.student}": settings.student in ("best", "worst"),
        "select": settings.select.needs_validation,
        f"order: {settings.order}": settings.order.endswith("-first"),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def arch_of(teacher: TeacherFile, card: ModelCard | None, default: str | None) -> str:
    """Return a teacher's architecture: of ``ARCH=PATH``, else of its file, else of ``--arch``.

    Code of a user's own is never imported because a file names it.

    Raises:
        UserError: none of them names one, or only the file names code of a user's own.
    """
    if teacher.arch is not None:
        return teacher.arch
    arch = card.arch if card is not None else default
    if arch is None:
        raise UserError(
            f"--teachers: {teacher.path} does not name its architecture; give --arch, or "
            f"ARCH={teacher.path} for this one alone"
        )
    if card is not None and card.is_own and arch != default:
        raise UserError(
            f"--teachers: {teacher.path} says that its architecture is {arch}, which is code that "
            f"would be run; if it is yours, write {arch}={teacher.path}"
        )
    return arch


def student_arch(offline: Offline, archs: Sequence[str]) -> str:
    """Return the student's architecture: of ``--arch``, else the teachers' if they have one.

    Raises:
        UserError: it is not known, or no teacher that the student should start from has it.
    """
    known = sorted(set(archs))
    if offline.arch is None and len(known) > 1:
        raise UserError(f"--arch: the teachers are {', '.join(known)}; say which the student is")
    arch = offline.arch or known[0]
    if offline.settings.student != "fresh" and arch not in known:
        raise UserError(
            f"student: {offline.settings.student} needs a teacher whose architecture is {arch}, "
            f"but they are {', '.join(known)}; use --student fresh"
        )
    return arch


def class_names(cards: Mapping[str, ModelCard], images: OfflineImages) -> tuple[str, ...]:
    """Return the names of the classes, as far as they are known.

    Raises:
        UserError: the same names stand in another order, which makes predictions meaningless.
    """
    known = [(name, card.classes) for name, card in cards.items() if card.classes]
    known += [("the labelled images", images.classes)] if images.classes else []
    for name, classes in known:
        first, expected = known[0]
        if classes != expected and sorted(classes) == sorted(expected):
            raise UserError(f"{first} and {name} have the same classes in another order")
    return known[0][1] if known else ()
