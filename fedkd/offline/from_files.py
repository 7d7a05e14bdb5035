"""Consolidation without a federation: checkpoints in, one model and a report of it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedkd.config import Consolidation, Engine
from fedkd.data.images import content_hash
from fedkd.distillation.consolidate import Consolidated, consolidate
from fedkd.distillation.targets import DistillationSetup
from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.errors import UserError
from fedkd.models.backbone import Backbone
from fedkd.models.build import build_model, rebuild
from fedkd.models.card import ModelCard, load_model, read_card
from fedkd.models.check import check_model, find_training_problem
from fedkd.models.preprocessing import identity
from fedkd.models.state import Checkpoint, State
from fedkd.offline.images import OfflineImages, open_images
from fedkd.offline.request import (
    Offline,
    arch_of,
    class_names,
    refuse_what_needs_silos,
    student_arch,
)
from fedkd.registry import METHODS
from fedkd.results.diagnostics import pairwise_agreement
from fedkd.training.batch_norm import batch_norms
from fedkd.training.compute import Compute, intra_op_threads, smallest_batch
from fedkd.training.evaluate import evaluate
from fedkd.util.files import hash_file

_UNWEIGHTED = ("dp-kd", "fine-tune")
"""Methods in which weightings play no part."""


@dataclass(frozen=True)
class OfflineResult:
    """A student: its weights, what its file should say, and the report."""

    state: State
    card: ModelCard
    report: dict[str, Any]


def consolidate_files(
    offline: Offline, on_epoch: Callable[[int, int], None] | None = None
) -> OfflineResult:
    """Make one model of several checkpoints. The same files and settings give the same bits.

    ``on_epoch`` is called after every epoch with its number, from 1, and how many there are.

    Raises:
        UserError: a file or setting is impossible, or needs silos and their data.
        FedKDError: distillation diverged.
    """
    refuse_what_needs_silos(offline)
    compute = Compute()
    with intra_op_threads(Engine().server_threads):
        paths = [teacher.path for teacher in offline.teachers]
        read = {path: read_card(path, what="--teachers") for path in paths}
        all_cards = {str(path): card for path, card in read.items()}
        cards = {name: card for name, card in all_cards.items() if card is not None}
        archs = [arch_of(each, read[each.path], offline.arch) for each in offline.teachers]
        arch = student_arch(offline, archs)
        images = _prepared(
            open_images(offline.images, all_cards, arch, offline.seed), cards, archs, arch
        )
        classes = class_names(cards, images)
        checkpoints = [
            _load_teacher(path, ModelCard(teacher_arch, images.shape), read[path])
            for path, teacher_arch in zip(paths, archs, strict=True)
        ]
        _check_training(offline.settings, arch, archs, images)
        batch_norm = _warn_of_batch_norm(offline, arch, archs, images)
        teachers = _make_teachers(offline, archs, checkpoints, images, compute)
        setup = DistillationSetup(
            transfer=images.transfer,
            labelled=offline.images.labelled,
            validation=images.validation,
            arch=arch,
            shape=images.shape,
            compute=compute,
            seed=offline.seed,
            on_epoch=on_epoch,
        )
        learnt = consolidate(teachers, offline.settings, setup)
        report = _report(offline, teachers, learnt, setup, images)
    report["warnings"] = [
        *images.warnings,
        *batch_norm,
        *(note for checkpoint in checkpoints for note in checkpoint.notes),
        *([learnt.notes["warning"]] if "warning" in learnt.notes else []),
    ]
    facts = {
        key: report[key] for key in ("method", "seed", "accuracy", "accuracy_on", "transfer")
    } | {"teachers": [entry["sha256"] for entry in report["teachers"]]}
    card = ModelCard(arch, images.shape, classes, facts, columns=images.columns)
    return OfflineResult(learnt.state, card, report)


def _make_teachers(
    offline: Offline,
    archs: Sequence[str],
    checkpoints: Sequence[Checkpoint],
    images: OfflineImages,
    compute: Compute,
) -> Teachers:
    examples = offline.examples or (1,) * len(archs)
    members = [
        Teacher(str(file.path), arch, number, checkpoint.state)
        for file, arch, number, checkpoint in zip(
            offline.teachers, archs, examples, checkpoints, strict=True
        )
    ]
    recalibrate_on = images.transfer if offline.batch_norm == "recalibrate" else None
    return Teachers(members, images.shape, compute, recalibrate_on=recalibrate_on)


def _prepared(
    images: OfflineImages, cards: Mapping[str, ModelCard], archs: Sequence[str], arch: str
) -> OfflineImages:
    """Return the images, for models with the preprocessing that the teachers' files name.

    A fresh student has that of the first teacher with one.
    """
    named = [(name, own) for name, card in cards.items() if (own := card.preprocessing)]
    if not named:
        return images
    first, chosen = named[0]
    for name, other in named:
        if other.size != chosen.size:
            raise UserError(
                f"--teachers: {first} resizes images to {chosen.size} pixels, but {name} to "
                f"{other.size}; all models must take images of one size"
            )
    others = tuple(sorted({*archs} - {arch}))
    backbone = Backbone(arch, preprocessing=chosen, others=others)
    return replace(images, shape=replace(images.shape, backbone=backbone))


def _load_teacher(path: Path, card: ModelCard, own: ModelCard | None) -> Checkpoint:
    """Read a teacher for the study's shape; its own card says how it was trained."""
    preprocessing = None if own is None else own.preprocessing
    if preprocessing is None and card.preprocessing is not None:
        preprocessing = identity(len(card.preprocessing.mean))
    try:
        checkpoint = load_model(path, card, what="--teachers", preprocessing=preprocessing)
    except UserError as error:
        raise UserError(
            f"{error} (as {card.arch} for {card.shape} and {card.shape.num_classes} classes; "
            "ARCH=PATH, --channels, --image-size and --classes say otherwise)"
        ) from error
    if not checkpoint.finite:
        raise UserError(f"--teachers: not all weights of {path} are finite; leave it out")
    return checkpoint


def _check_training(
    settings: Consolidation, arch: str, archs: Sequence[str], images: OfflineImages
) -> None:
    """Refuse models that cannot be trained on the batches that the transfer set makes."""
    count = len(images.validation if settings.teachers == "validation" else images.transfer)
    if settings.subset is not None:
        count = min(count, settings.subset.size)
    for each in {arch, *(archs if "models" in METHODS.spec(settings.method).needs else ())}:
        check_model(each, images.shape)
        if smallest_batch(count, settings.batch_size) != 1:
            continue
        if problem := find_training_problem(each, images.shape, 1):
            key = "the number of transfer images" if count == 1 else "batch_size"
            raise UserError(f"{key} is 1, but {each} {problem}; use 2 or more")


def _warn_of_batch_norm(
    offline: Offline, arch: str, archs: Sequence[str], images: OfflineImages
) -> list[str]:
    """Return a warning if the student is an average with averaged BatchNorm statistics."""
    if offline.settings.student != "average":
        return []
    has_any = bool(batch_norms(build_model(arch, images.shape, seed=0)))
    if offline.batch_norm == "recalibrate":
        if not has_any:
            raise UserError(f"--batch-norm: {arch} has no BatchNorm; leave it out")
        return []
    if not has_any or archs.count(arch) < 2:
        return []
    sentence = (
        f"student: average averages {archs.count(arch)} models with BatchNorm, whose averaged "
        "statistics fit none of them; give --batch-norm recalibrate"
    )
    return [sentence]


def _report(
    offline: Offline,
    teachers: Teachers,
    learnt: Consolidated,
    setup: DistillationSetup,
    images: OfflineImages,
) -> dict[str, Any]:
    """Return what was done and how it went, as plain values; accuracies are None if unknown."""
    settings = offline.settings
    judged = len(images.validation) > 0
    accuracies = [
        _accuracy(state, setup) if judged else None for state in (learnt.start, learnt.state)
    ]
    transfer = images.transfer.images
    return {
        "method": settings.method,
        "weighting": settings.weighting,
        "student": learnt.notes.get("student", settings.student),
        "batch_norm": offline.batch_norm,
        "arch": setup.arch,
        "shape": images.shape.sizes,
        "seed": offline.seed,
        "transfer": {
            "source": offline.images.transfer,
            "size": len(transfer),
            "labelled": setup.labelled,
            "sha256": content_hash(transfer),
        },
        "teachers": _teacher_entries(offline, teachers, learnt, images),
        "agreement": {
            "between_teachers": pairwise_agreement(learnt.teachers.predict(transfer).argmax(2)),
            "student": learnt.notes["student_agreement"],
        },
        "distillation_loss": learnt.notes["distillation_loss"],
        "accuracy_before": accuracies[0],
        "accuracy": accuracies[1],
        "accuracy_on": f"{len(images.validation)} {images.validation_from}" if judged else None,
        "accuracy_used_to_choose": judged and settings.needs_validation,
        "settings": settings.model_dump(mode="json"),
    }


def _accuracy(state: State, setup: DistillationSetup) -> float:
    model = rebuild(setup.arch, setup.shape, state)
    return evaluate(model, setup.validation, compute=setup.compute).accuracy


def _teacher_entries(
    offline: Offline, teachers: Teachers, learnt: Consolidated, images: OfflineImages
) -> list[dict[str, Any]]:
    judged = len(images.validation) > 0
    accuracies = teachers.accuracy(images.validation).tolist() if judged else [None] * len(teachers)
    weights = learnt.notes["mean_weights"]
    weighted = offline.settings.method not in _UNWEIGHTED
    return [
        {
            "path": teacher.silo,
            "sha256": hash_file(Path(teacher.silo)),
            "arch": teacher.arch,
            "examples": teacher.num_examples if offline.examples else None,
            "taught": teacher.silo in weights,
            "mean_weight": weights.get(teacher.silo, 0.0) if weighted else None,
            "accuracy": accuracy,
        }
        for teacher, accuracy in zip(teachers.members, accuracies, strict=True)
    ]
