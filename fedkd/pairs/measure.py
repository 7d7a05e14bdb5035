"""One pair of silos under one method: distil the student, measure its gain and forgetting."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedkd.config import Consolidation
from fedkd.data.images import Images
from fedkd.distillation.methods.base import DistillationData
from fedkd.errors import UserError
from fedkd.federation.describe import label_distance, simulated_teachers
from fedkd.federation.federation import Federation
from fedkd.models.build import Shape, rebuild
from fedkd.models.state import is_finite
from fedkd.registry import METHODS, is_external
from fedkd.results.diagnostics import DIGITS, complementary_knowledge, flips
from fedkd.training.compute import Compute, intra_op_threads
from fedkd.training.evaluate import predict
from fedkd.util.seeding import torch_generator

KD_TUNED = "kd-tuned"
"""Method kd with the pair's best temperature and weight on validation data."""

TEMPERATURES = (1.0, 4.0, 16.0)
WEIGHTS = (0.1, 0.5, 0.9)
"""The grid of ``kd-tuned``, ours: every other point of each axis of ``fedkd tune``."""

COLUMNS = {
    "seed": "the repetition",
    "teacher": "silo whose pre-trained model is the teacher",
    "student": "silo whose pre-trained model is the student",
    "method": "of distillation; kd-tuned: kd with the best of a grid on validation data",
    "temperature": "T; empty if the method uses none",
    "weight": "of the teacher against labels, 1 without labels; empty if the method uses none",
    "before": "test accuracy of the student before, in [0, 1]",
    "after": "test accuracy of the student after",
    "teacher_accuracy": "test accuracy of the teacher",
    "gap": "teacher_accuracy - before",
    "gain": "share of the test examples that the student got wrong before and right after",
    "forgetting": "share that it got right before and wrong after",
    "delta": "gain - forgetting, which is after - before",
    "delta_own": "delta over the test examples of classes that the student's silo has",
    "delta_others": "delta over those of all other classes; empty if it has every class",
    "complementary": "share of the test examples that the student got wrong and the teacher right",
    "label_distance": "Jensen-Shannon distance of their silos' labels, base 2, in [0, 1]",
    "seconds": "wall-clock time of distillation, the search included; other jobs run beside it",
    "problem": "why there is no student; its figures are then empty",
}
"""The table's columns and what they mean; only ``seconds`` differs between runs."""


@dataclass(frozen=True, eq=False)
class Member:
    """A silo with a usable model.

    Attributes:
        class_counts: number of its examples of each class, ``[K]``.
        on_test: the model's logits on the test examples, ``[N, K]``.
    """

    silo: str
    arch: str
    state: dict[str, Tensor]
    class_counts: Tensor
    on_test: Tensor


@dataclass(frozen=True, eq=False)
class Pair:
    """A teacher, a student, and the data on which they are distilled and evaluated.

    Attributes:
        labelled: whether their labels may be used.
        validation: labelled examples by which ``kd-tuned`` selects.
        test: examples on which both are evaluated.
    """

    teacher: Member
    student: Member
    transfer: Images
    labelled: bool
    validation: Images
    test: Images
    shape: Shape
    compute: Compute
    seed: int


def make_pairs(federation: Federation) -> list[Pair]:
    """Return all ordered pairs of silos whose models can be used, by teacher, then student.

    Raises:
        UserError: a silo's model is of another library, which trains no further.
    """
    study, split = federation.study, federation.split
    if external := [arch for arch in study.architectures if is_external(arch)]:
        raise UserError(
            f"model.per_silo: fedkd pairs trains every model, but {external[0]} only predicts"
        )
    teachers = simulated_teachers(federation).members
    members = [_member(federation, each.silo, each.state) for each in teachers if each.state]
    return [
        Pair(
            teacher=teacher,
            student=student,
            transfer=federation.data_of(student.silo) if split.transfer is None else split.transfer,
            labelled=study.data.transfer.labelled or study.data.transfer.at_silo,
            validation=split.validation,
            test=split.test,
            shape=federation.shape,
            compute=federation.compute,
            seed=federation.seed,
        )
        for teacher in members
        for student in members
        if teacher is not student
    ]


def measure(pair: Pair, method: str, settings: Consolidation) -> dict[str, Any]:
    """Distil the pair's student by a method and return a row with the keys of ``COLUMNS``.

    All methods of a pair have the same order of samples. Method, temperature and weight are set
    here: 1 and 0.5 except for ``kd-tuned``.
    """
    with intra_op_threads(1):
        began = time.perf_counter()
        if method == KD_TUNED:
            model, chosen = _distil_tuned(pair, settings)
        else:
            point = {"method": method, "temperature": 1.0, "weight": 0.5}
            chosen = settings.model_copy(update=point)
            model = _distil(pair, chosen)
        seconds = round(time.perf_counter() - began, 3)
        after = None if model is None else predict(model, pair.test, compute=pair.compute)
    return {
        "seed": pair.seed,
        "teacher": pair.teacher.silo,
        "student": pair.student.silo,
        "method": method,
        **_used(chosen, method, labelled=pair.labelled),
        **compare(pair, after),
        "seconds": seconds,
        "problem": None if model is not None else f"diverged at learning rate {settings.lr:g}",
    }


def compare(pair: Pair, after: Tensor | None) -> dict[str, float | None]:
    """Return the figures of a row, by the student's logits ``[N, K]`` afterwards, if any."""
    labels, before = pair.test.labels, pair.student.on_test
    accuracy, teacher = _accuracy(before, labels), _accuracy(pair.teacher.on_test, labels)
    figures: dict[str, float | None] = {
        "before": accuracy,
        "after": None,
        "teacher_accuracy": teacher,
        "gap": round(teacher - accuracy, DIGITS),
        **dict.fromkeys(("gain", "forgetting", "delta", "delta_own", "delta_others")),
        "complementary": complementary_knowledge(before, pair.teacher.on_test, labels),
        "label_distance": round(
            label_distance(pair.teacher.class_counts, pair.student.class_counts), DIGITS
        ),
    }
    if after is None:
        return figures
    changes = flips(before, after, labels, pair.shape.num_classes)
    own = pair.student.class_counts[labels] > 0
    figures["after"] = _accuracy(after, labels)
    figures |= {key: changes[key] for key in ("gain", "forgetting", "delta")}
    for key, rows in (("delta_own", own), ("delta_others", ~own)):
        if rows.any():
            part = flips(before[rows], after[rows], labels[rows], pair.shape.num_classes)
            figures[key] = part["delta"]
    return figures


def grid(*, labelled: bool) -> list[tuple[float, float]]:
    """Return the points (temperature, weight) of ``kd-tuned``, vanilla kd first.

    Without labels the weight has no effect: the grid then has one axis.
    """
    vanilla = (1.0, 0.5)
    weights = WEIGHTS if labelled else vanilla[1:]
    points = [(temperature, weight) for temperature in TEMPERATURES for weight in weights]
    return [vanilla, *(point for point in points if point != vanilla)]


def _member(federation: Federation, silo: str, state: dict[str, Tensor]) -> Member:
    arch = federation.study.arch_of(silo)
    model = rebuild(arch, federation.shape, state, federation.compute.device)
    with intra_op_threads(1):
        logits = predict(model, federation.split.test, compute=federation.compute)
    labels = federation.data_of(silo).labels
    counts = torch.bincount(labels, minlength=federation.shape.num_classes)
    return Member(silo, arch, state, counts, logits)


def _distil_tuned(pair: Pair, settings: Consolidation) -> tuple[nn.Module | None, Consolidation]:
    """Return the student that is best on validation data; of equals, the first of the grid."""
    best: tuple[nn.Module | None, Consolidation, float] = (None, settings, -1.0)
    for temperature, weight in grid(labelled=pair.labelled):
        point = {"method": "kd", "temperature": temperature, "weight": weight}
        own = settings.model_copy(update=point)
        model = _distil(pair, own)
        if model is None:
            continue
        logits = predict(model, pair.validation, compute=pair.compute)
        score = _accuracy(logits, pair.validation.labels)
        if score > best[2]:
            best = (model, own, score)
    return best[:2]


def _distil(pair: Pair, settings: Consolidation) -> nn.Module | None:
    """Return the distilled student, or None if it diverged."""
    teacher, images = pair.teacher, pair.transfer.images
    model = rebuild(teacher.arch, pair.shape, teacher.state, pair.compute.device)
    logits = predict(model, images, compute=pair.compute)
    data = DistillationData(
        images=images,
        labels=pair.transfer.labels if pair.labelled else None,
        target=torch.softmax(logits.double() / settings.temperature, dim=1).float(),
        logits=logits[None],
        weights=torch.ones(1, len(images), dtype=torch.float64),
        models=(model,),
    )
    own, device = pair.student, pair.compute.device
    student = rebuild(own.arch, pair.shape, own.state, device)
    METHODS.call(
        settings.method,
        student,
        data,
        settings,
        generator=torch_generator(pair.seed, "pair", f"{teacher.silo} to {pair.student.silo}"),
        compute=pair.compute,
        on_epoch=None,
    )
    return student if is_finite(student.state_dict(), pair.student.state) else None


def _used(settings: Consolidation, method: str, *, labelled: bool) -> dict[str, float | None]:
    values = {"temperature": settings.temperature, "weight": settings.weight if labelled else 1.0}
    uses = METHODS.spec("kd" if method == KD_TUNED else method).uses
    return {key: value if key in uses else None for key, value in values.items()}


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return round(float((logits.argmax(1) == labels).double().mean()), DIGITS)
