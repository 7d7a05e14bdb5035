"""Describe a federation in a few figures that need no distillation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedkd.distillation.teachers import Teacher, Teachers
from fedkd.distillation.weighting.weightings import entropy
from fedkd.federation.federation import Federation
from fedkd.federation.local_silo import LocalSilo
from fedkd.models.state import State
from fedkd.registry import NOISE


def describe(federation: Federation) -> dict[str, Any]:
    """Describe the federation of one seed.

    Returns:
        ``silos``: number of silos; ``images``: in all silos; ``label_skew``: mean Jensen-Shannon
        distance (base 2, in [0, 1]) of the silos' label mixes from the pooled mix; ``size_skew``:
        standard deviation of silo sizes divided by their mean; ``labelled``: whether transfer
        labels may be used; ``native``: whether transfer examples come from the study's own source;
        ``transfer_size``. On validation data, None without any: ``teachers``: mean accuracy of the
        silos' models; ``best``: of the best one; ``average``: of their average; ``gap``: best -
        average, None if no model has the study's architecture.
    """
    study, split = federation.study, federation.split
    counts = torch.stack(
        [torch.bincount(part.labels, minlength=split.num_classes) for part in split.silos]
    ).double()
    sizes = counts.sum(1)
    figures: dict[str, Any] = {
        "silos": len(counts),
        "images": int(sizes.sum()),
        "label_skew": round(label_skew(counts), 4),
        "size_skew": round(float(sizes.std(unbiased=False) / sizes.mean()), 4),
        "labelled": study.data.transfer.labelled or study.data.transfer.at_silo,
        "native": study.data.transfer.source in (None, study.data.source),
        "noise": study.data.transfer.source == NOISE,
        "transfer_size": len(split.transfer) if split.transfer is not None else 0,
        **dict.fromkeys(("teachers", "best", "average", "gap")),
    }
    if not len(split.validation):
        return figures
    teachers = simulated_teachers(federation)
    accuracy = teachers.accuracy(split.validation)
    figures["teachers"] = round(float(accuracy.mean()), 4)
    figures["best"] = round(float(accuracy.max()), 4)
    if any(teacher.arch == study.model.arch for teacher in teachers.members):
        mean = _accuracy_of(teachers.average(study.model.arch), federation)
        figures["average"] = round(mean, 4)
        figures["gap"] = round(figures["best"] - mean, 4)
    return figures


def label_skew(counts: Tensor) -> float:
    """Return the mean Jensen-Shannon distance of label mixes from their total, in [0, 1].

    Args:
        counts: examples of each class in each silo, float64 ``[M, K]``; no silo may be empty.
    """
    mixes = counts / counts.sum(1, keepdim=True)
    return float(_js_distance(mixes, counts.sum(0) / counts.sum()).mean())


def label_distance(first: Tensor, second: Tensor) -> float:
    """Return the Jensen-Shannon distance (base 2, in [0, 1]) of two silos' label mixes.

    Args:
        first: examples of each class in one silo ``[K]``, which may not be empty.
        second: examples of each class in the other ``[K]``.
    """
    mixes = torch.stack([first, second]).double()
    mixes = mixes / mixes.sum(1, keepdim=True)
    return float(_js_distance(mixes[:1], mixes[1])[0])


def _js_distance(mixes: Tensor, other: Tensor) -> Tensor:
    """Return the distance ``[M]`` of each mix ``[M, K]`` from another ``[K]``, all float64."""
    middle = (mixes + other) / 2
    divergence = entropy(middle) - (entropy(mixes) + entropy(other)) / 2
    bits = (divergence / torch.log(torch.tensor(2.0, dtype=torch.float64))).clamp(0, 1)
    return bits.sqrt()


def simulated_teachers(federation: Federation) -> Teachers:
    """Return all usable pre-trained models of a simulated federation, without any message."""
    silos = [LocalSilo.simulated(federation, name) for name in federation.study.silo_names]
    members = [
        replace(silo.as_teacher, state=state)
        for silo in silos
        if (state := silo.own_model().state) is not None
    ]
    return Teachers(
        members, federation.shape, federation.compute, recalibrate_on=federation.recalibrate_on
    )


def _accuracy_of(state: State, federation: Federation) -> float:
    arch = federation.study.model.arch
    alone = Teachers([Teacher("average", arch, 1, state)], federation.shape, federation.compute)
    return float(alone.accuracy(federation.split.validation)[0])
