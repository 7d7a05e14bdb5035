"""Checks before a study runs: errors that would occur later, and meaningless results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fedkd.config.text import Text
from fedkd.data.texts import load_tokenizer
from fedkd.errors import UserError
from fedkd.federation.metric_check import check_metric_is_defined, constant_metrics
from fedkd.models.build import build_model
from fedkd.models.check import check_model, find_training_problem
from fedkd.models.given import find_given, read_given
from fedkd.models.hugging_face import check_tokenizer
from fedkd.registry import AUGMENTATIONS, HUGGING_FACE, METHODS, METRICS, metric_key
from fedkd.training.augment import check_augmentation
from fedkd.training.batch_norm import batch_norms
from fedkd.training.compute import Compute, smallest_batch
from fedkd.training.features import penultimate_features

if TYPE_CHECKING:
    from fedkd.config import Study
    from fedkd.federation.federation import Federation


def check_study(federations: Sequence[Federation]) -> tuple[str, ...]:
    """Check a study before it runs.

    Returns:
        Warnings, one sentence each.

    Raises:
        UserError: a device, model, checkpoint or name does not fit, or a silo or transfer set is
            too small for a model.
    """
    warnings = list(_check_models(federations[0]))
    for federation in federations:
        _check_metric(federation)
        warnings += federation.split.warnings
        warnings += _check_batches(federation)
    warnings += _check_targets(federations)
    return tuple(dict.fromkeys(warnings))


def _check_models(federation: Federation) -> Iterator[str]:
    """Check the device, every model and every checkpoint; yield warnings."""
    study = federation.study
    if not study.is_deployed:  # deployed hosts check their own devices
        federation.compute.check()
    _check_augmentations(federation)
    if study.is_deployed and any(arch.startswith(HUGGING_FACE) for arch in study.architectures):
        return  # these hosts, and the server's, have the folders
    check_tokenizers(study)
    for arch in study.architectures:
        check_model(arch, federation.shape)
    yield from _warn_of_averages(federation)
    for name, arm in study.arms.items():
        if arm.consolidation and arm.consolidation.uses_features:
            _check_features(federation, name)
    for name, arm in study.arms.items():
        if arm.checkpoint and not study.is_deployed:  # else it is on the SuperLink's host
            what, arch = f"arms.{name}.checkpoint", study.global_arch(name)
            given = find_given(arm.checkpoint, what=what)
            _, start = read_given(
                given,
                [arch],
                federation.shape,
                federation.split.classes,
                what=what,
                encoder=federation.split.encoder,
            )
            yield from start.notes
    for silo, path in study.pretraining.checkpoints.items():
        what = f"pretraining.checkpoints.{silo}"
        checkpoint = federation.read_checkpoint(silo, path, what)
        yield from checkpoint.notes
        if not checkpoint.finite:
            yield (
                f"pretraining.checkpoints.{silo}: {path} has values that are not finite, so "
                f"{silo} is not used as a teacher"
            )


def check_tokenizers(study: Study) -> None:
    """Refuse a tokenizer of texts that a network of the study was not made for.

    Raises:
        UserError: one of them cannot be read, or they do not fit.
    """
    for arch in study.architectures:
        if isinstance(study.columns, Text) and arch.startswith(HUGGING_FACE):
            check_tokenizer(arch.removeprefix(HUGGING_FACE), load_tokenizer(study.columns))


def _warn_of_averages(federation: Federation) -> Iterator[str]:
    """Yield a warning for each arm that starts from an average of models with BatchNorm."""
    study = federation.study
    normed = {
        arch
        for arch in {study.global_arch(name) for name in study.arms}
        if batch_norms(build_model(arch, federation.shape, seed=0))
    }
    if study.model.batch_norm != "average" and not normed:
        raise UserError(
            f"model.batch_norm: is {study.model.batch_norm}, but no global model of the study has "
            "BatchNorm; leave it out"
        )
    if study.model.batch_norm == "recalibrate":
        return
    for name, arm in study.arms.items():
        student = arm.consolidation.student if arm.consolidation else None
        if "average" in (arm.start, student) and study.global_arch(name) in normed:
            yield (
                f"arms.{name}: averages models with BatchNorm, whose averaged statistics fit none "
                "of them; set model.batch_norm: recalibrate"
            )


def _check_augmentations(federation: Federation) -> None:
    """Apply every augmentation of the study once; a deployed silo applies its own itself."""
    study, shape = federation.study, federation.shape
    named = {"pretraining": study.pretraining.augment}
    for name, arm in study.arms.items():
        named[f"arms.{name}.rounds"] = study.rounds_of(name).augment
        if arm.consolidation is not None:
            named[f"arms.{name}.consolidation"] = arm.consolidation.augment
    for path, augmentation in named.items():
        if study.is_deployed and AUGMENTATIONS.is_own(augmentation):
            continue
        if shape.kind != "image":
            continue  # refused already unless it is none
        try:
            check_augmentation(augmentation, shape.in_channels, shape.image_size)
        except UserError as error:
            raise UserError(f"{path}.augment: {error}") from error


def _check_features(federation: Federation, arm: str) -> None:
    """Compute once the features that an arm's densities are fitted to."""
    model = build_model(federation.study.global_arch(arm), federation.shape, seed=0)
    images = federation.shape.zeros(2)
    try:
        penultimate_features(model, images, compute=Compute())
    except UserError as error:
        raise UserError(f"arms.{arm}.consolidation.{error}") from error


def _check_batches(federation: Federation) -> Iterator[str]:
    """Refuse batches of one example if a model cannot be trained on them.

    Yields:
        A warning for each arm in which silos cannot be trained in the rounds.
    """
    study, silos = federation.study, federation.sizes
    if study.needs_pretrained:
        size = study.pretraining.batch_size
        for silo in [each for each in silos if each not in study.pretraining.checkpoints]:
            count = silos[silo] - study.pretraining.num_held_out(silos[silo])
            if reason := _single_image_problem(federation, study.arch_of(silo), count, size):
                _refuse(silo, count, "pretraining.batch_size", reason)
    for name in study.arms:
        arch, size = study.global_arch(name), study.rounds_of(name).batch_size
        single = []
        for silo, count in silos.items():
            if reason := _single_image_problem(federation, arch, count, size):
                if count > 1:
                    _refuse(silo, count, "rounds.batch_size", reason)
                single.append(silo)
        if single:
            others = f" and {len(single) - 3} more" if len(single) > 3 else ""
            yield (
                f"arms.{name}: {', '.join(single[:3])}{others} of seed {federation.seed} cannot be "
                f"trained in the rounds: {arch} needs batch statistics of more than one example; "
                "raise partition.min_size to 2 or more"
            )
        _check_transfer_batches(federation, name)


def _refuse(silo: str, count: int, key: str, reason: str) -> None:
    if count == 1:
        raise UserError(
            f"partition.min_size: {silo} has a single example, but its model {reason}; raise it to "
            "2 or more, or use a model without batch normalisation"
        )
    raise UserError(f"{key}: is 1, but the model of {silo} {reason}; set it to 2 or more")


def _check_transfer_batches(federation: Federation, name: str) -> None:
    """Refuse an arm that would distil on batches of one transfer example."""
    study, arm = federation.study, federation.study.arms[name]
    archs, num_images = {study.global_arch(name)}, study.data.transfer.size
    if (settings := arm.consolidation) is not None:
        path, batch_size = f"arms.{name}.consolidation", settings.batch_size
        if "models" in METHODS.spec(settings.method).needs:
            archs |= {study.arch_of(silo) for silo in study.silo_names}
        if settings.subset is not None:
            num_images = min(num_images, settings.subset.size)
    elif arm.strategy == "feddf":
        path, batch_size = f"arms.{name}.fusion", arm.fusion.batch_size
    else:
        return
    for arch in sorted(archs):
        if reason := _single_image_problem(federation, arch, num_images, batch_size):
            key = f"{path}.batch_size" if num_images > 1 else "data.transfer.size"
            raise UserError(f"{key}: is 1, but {arch} {reason}; set it to 2 or more")


def _single_image_problem(federation: Federation, arch: str, count: int, batch_size: int) -> str:
    """Return why ``arch`` fails on a batch of one; ``""`` if there is no such batch."""
    if smallest_batch(count, batch_size) != 1:
        return ""
    return find_training_problem(arch, federation.shape, 1)


def _check_metric(federation: Federation) -> None:
    """Refuse a metric that the test examples do not define; deployed servers check their own."""
    study, split = federation.study, federation.split
    if len(split.test):
        check_metric_is_defined(
            study.metric, split.test.labels, split.num_classes, split.classes, "test examples"
        )


def _check_targets(federations: Sequence[Federation]) -> Iterator[str]:
    """Yield a warning for each target that a constant prediction reaches."""
    metric = federations[0].study.metric
    reached = []
    for split in [federation.split for federation in federations]:
        value = constant_metrics(split.test.labels, split.num_classes)[metric_key(metric)]
        reached += [] if value is None else [value]
    for target in federations[0].study.absolute_targets or []:
        if reached and target <= max(reached):
            yield (
                f"targets: always predicting one class reaches {target:.1%} "
                + (
                    f"({max(reached):.1%} of the test examples are of the largest class)"
                    if metric == "accuracy"
                    else f"(its {METRICS[metric]} is {max(reached):.1%})"
                )
            )
