"""Consolidation without a federation: checkpoints in, one model and a report of it out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedkd.config import Consolidation, Engine
from fedkd.data.images import content_hash
from fedkd.distillation.consolidate import Consolidated, consolidate
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.errors import UserError
from fedkd.models.build import build_model
from fedkd.models.card import ModelCard, load_model, read_card
from fedkd.models.state import State
from fedkd.offline.images import OfflineImages, Wanted, open_images
from fedkd.registry import NEEDS_LABELS, check_architecture
from fedkd.results.diagnostics import pairwise_agreement
from fedkd.training.compute import Compute, intra_op_threads
from fedkd.training.evaluate import evaluate, is_finite

_UNWEIGHTED = ("dp-kd", "fine-tune")
"""Methods in which weightings play no part."""


@dataclass(frozen=True)
class TeacherFile:
    """A checkpoint that is to teach, and its architecture if the user names it."""

    path: Path
    arch: str | None = None

    @classmethod
    def parse(cls, text: str) -> TeacherFile:
        """Read ``PATH`` or ``ARCH=PATH``; a file whose own name has a ``=`` is meant as such.

        Raises:
            UserError: what stands before the ``=`` is no architecture.
        """
        arch, equals, name = text.partition("=")
        if not equals or Path(text).exists():
            return cls(Path(text))
        try:
            return cls(Path(name).expanduser(), check_architecture(arch))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--teachers {text}: {error}") from None


@dataclass(frozen=True)
class Offline:
    """What is to be made of which files.

    Attributes:
        teachers: checkpoints, in the order in which they count.
        images: the transfer set and the validation set.
        arch: of the student, and of teachers for which neither user nor file names another.
        settings: of the consolidation, as in a study.
        examples: how many images each teacher was trained on; empty where that is unknown.
        seed: of every random choice.
    """

    teachers: tuple[TeacherFile, ...]
    images: Wanted
    arch: str | None = None
    settings: Consolidation = field(default_factory=Consolidation)
    examples: tuple[int, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """A student: its weights, what its file should say, and the report."""

    state: State
    card: ModelCard
    report: dict[str, Any]


def consolidate_files(offline: Offline, on_epoch: Callable[[int, int], None] | None = None) -> Made:
    """Make one model of several checkpoints. The same files and settings give the same bits.

    Args:
        offline: what to do.
        on_epoch: told of every epoch: its number from 1, and how many there are.

    Raises:
        UserError: a file or setting is impossible, or needs silos and their data.
        FedKDError: distillation diverged.
    """
    _refuse_what_needs_silos(offline)
    compute = Compute()
    with intra_op_threads(Engine().server_threads):
        cards = [(str(t.path), read_card(t.path, what="--teachers")) for t in offline.teachers]
        archs = [
            _arch_of(teacher, card, offline.arch)
            for teacher, (_, card) in zip(offline.teachers, cards, strict=True)
        ]
        arch = _student_arch(offline, archs)
        room = open_images(offline.images, cards, offline.seed)
        classes = _class_names(cards, room)
        teachers = _load_teachers(offline, archs, room, compute)
        setup = DistillationSetup(
            transfer=room.transfer,
            labelled=offline.images.labelled,
            validation=room.validation,
            arch=arch,
            shape=room.shape,
            compute=compute,
            seed=offline.seed,
            on_epoch=on_epoch,
        )
        made = consolidate(teachers, offline.settings, setup)
        report = _report(offline, teachers, made, setup, room)
    facts = {
        key: report[key] for key in ("method", "seed", "accuracy", "accuracy_on", "transfer")
    } | {"teachers": [entry["sha256"] for entry in report["teachers"]]}
    return Made(made.state, ModelCard(arch, room.shape, classes, facts), report)


def _refuse_what_needs_silos(offline: Offline) -> None:
    settings, number = offline.settings, len(offline.teachers)
    if number == 0:
        raise UserError("--teachers: name at least one checkpoint")
    if len({teacher.path.absolute() for teacher in offline.teachers}) < number:
        raise UserError("--teachers: names a file twice")
    if settings.uses_densities:
        raise UserError(
            "weighting: familiarity asks each silo how likely the transfer images are under its "
            "own data, which a checkpoint does not tell; use equal, confidence or consensus"
        )
    if settings.weighting == "class-prior":
        raise UserError(
            "weighting: class-prior needs each silo's images of each class, which a checkpoint "
            "does not tell; use equal, confidence or consensus"
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
    by_labels = settings.method in NEEDS_LABELS and settings.teachers != "validation"
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


def _arch_of(teacher: TeacherFile, card: ModelCard | None, default: str | None) -> str:
    """Return a teacher's architecture: what the user says of it, its file, the user in general.

    Code of a user's own is never imported because a file says so.
    """
    if teacher.arch is not None:
        return teacher.arch
    found = card.arch if card is not None else default
    if found is None:
        raise UserError(
            f"--teachers: {teacher.path} does not say its architecture; give --arch, or "
            f"ARCH={teacher.path} for this one alone"
        )
    if card is not None and card.is_own and found != default:
        raise UserError(
            f"--teachers: {teacher.path} says that its architecture is {found}, which is code that "
            f"would be run; if it is yours, write {found}={teacher.path}"
        )
    return found


def _student_arch(offline: Offline, archs: Sequence[str]) -> str:
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


def _class_names(
    cards: Sequence[tuple[str, ModelCard | None]], room: OfflineImages
) -> tuple[str, ...]:
    """Return the names of the classes, as far as they are known.

    Raises:
        UserError: the same names stand in another order, which makes predictions meaningless.
    """
    known = [(name, card.classes) for name, card in cards if card is not None and card.classes]
    known += [("the labelled images", room.classes)] if room.classes else []
    for name, classes in known:
        first, expected = known[0]
        if classes != expected and sorted(classes) == sorted(expected):
            raise UserError(f"{first} and {name} have the same classes in another order")
    return known[0][1] if known else ()


def _load_teachers(
    offline: Offline, archs: Sequence[str], room: OfflineImages, compute: Compute
) -> Teachers:
    examples = offline.examples or (1,) * len(archs)
    members = []
    for teacher, arch, number in zip(offline.teachers, archs, examples, strict=True):
        state = _load_teacher(teacher.path, ModelCard(arch, room.shape))
        members.append(Teacher(str(teacher.path), arch, number, state))
    return Teachers(members, room.shape, compute)


def _load_teacher(path: Path, card: ModelCard) -> State:
    try:
        state = load_model(path, card, what="--teachers")
    except UserError as error:
        shape = card.shape
        raise UserError(
            f"{error} (as {card.arch} for {shape.in_channels} x {shape.image_size} x "
            f"{shape.image_size} images and {shape.num_classes} classes; ARCH=PATH, --channels, "
            "--image-size and --classes say otherwise)"
        ) from error
    if not is_finite(state):
        raise UserError(f"--teachers: not all weights of {path} are finite; leave it out")
    return state


def _report(
    offline: Offline,
    teachers: Teachers,
    made: Consolidated,
    setup: DistillationSetup,
    room: OfflineImages,
) -> dict[str, Any]:
    """Return what was done and how it went, as plain values; accuracies are None if unknown."""
    settings = offline.settings
    student = build_model(setup.arch, setup.shape, seed=0)
    student.load_state_dict(made.start)
    judged = len(room.validation) > 0
    before = evaluate(student, room.validation, compute=setup.compute).accuracy if judged else None
    student.load_state_dict(made.state)
    after = evaluate(student, room.validation, compute=setup.compute).accuracy if judged else None
    accuracy = teachers.accuracy(room.validation).tolist() if judged else [None] * len(teachers)
    images = room.transfer.images
    weights = made.notes["mean_weights"]
    return {
        "method": settings.method,
        "weighting": settings.weighting,
        "student": made.notes.get("student", settings.student),
        "arch": setup.arch,
        "shape": vars(room.shape),
        "seed": offline.seed,
        "transfer": {
            "source": offline.images.transfer,
            "size": len(images),
            "labelled": setup.labelled,
            "sha256": content_hash(images),
        },
        "teachers": [
            {
                "path": teacher.silo,
                "sha256": hashlib.sha256(Path(teacher.silo).read_bytes()).hexdigest(),
                "arch": teacher.arch,
                "examples": teacher.num_examples if offline.examples else None,
                "taught": teacher.silo in weights,
                "mean_weight": None
                if settings.method in _UNWEIGHTED
                else weights.get(teacher.silo, 0.0),
                "accuracy": found,
            }
            for teacher, found in zip(teachers.members, accuracy, strict=True)
        ],
        "agreement": {
            "between_teachers": pairwise_agreement(made.teachers.predict(images).argmax(2)),
            "student": made.notes["student_agreement"],
        },
        "distillation_loss": made.notes["distillation_loss"],
        "accuracy_before": before,
        "accuracy": after,
        "accuracy_on": f"{len(room.validation)} {room.validation_from}" if judged else None,
        "accuracy_used_to_choose": judged and settings.needs_validation,
        "settings": settings.model_dump(mode="json"),
    }
