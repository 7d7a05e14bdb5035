"""Functions of the user's own in a study: imported and checked before anything runs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import TypeAlias

from fedkd.config.data import Given, OwnPartition
from fedkd.config.study import Study
from fedkd.config.transfer_checks import check_labels
from fedkd.errors import UserError
from fedkd.registry import (
    ARCHITECTURES,
    AUGMENTATIONS,
    LOCAL_LOSSES,
    METHODS,
    PARTITIONS,
    SOURCES,
    STARTS,
    STRATEGIES,
    WEIGHTINGS,
)
from fedkd.util.error_messages import Problem
from fedkd.util.name_registry import Registry

Named: TypeAlias = tuple[str, Registry, str]
"""The dotted path of a key, the registry of its names, and the name."""

_ASKED_OF_SILOS = (AUGMENTATIONS, LOCAL_LOSSES, METHODS, WEIGHTINGS)
"""What a silo may need of the section ``rounds``, or ``consolidation`` where it distils."""


_ARGUMENTS: dict[str, tuple[int, tuple[str, ...]]] = {
    STARTS.kind: (2, ()),
    STRATEGIES.kind: (1, ()),
    METHODS.kind: (3, ("generator", "compute", "on_epoch")),
    WEIGHTINGS.kind: (2, ()),
    PARTITIONS.kind: (3, ()),
    SOURCES.kind: (0, ()),
    LOCAL_LOSSES.kind: (1, ()),
}
"""How functions of a kind are called: number of positional arguments, and keywords."""


def find_problems(study: Study) -> list[Problem]:
    """Return what is wrong with the user's own functions, each of which is imported."""
    problems: dict[str, Problem] = {}
    named = [*_own(_architectures(study))]
    for arm in study.arms:
        named += _own(_functions(study, arm))
    for path, registry, name in named:
        # The source of deployed silos' server is on the SuperLink's host.
        if registry is SOURCES and study.is_deployed:
            continue
        try:
            _check_call(study, path, registry, name)
        except UserError as error:
            problems[path] = Problem(path, str(error))
    problems |= _find_loss_problems(study, problems)
    for arm, section in study.arms.items():
        settings, path = section.consolidation, f"arms.{arm}.consolidation"
        if settings is None or not METHODS.is_own(settings.method) or f"{path}.method" in problems:
            continue
        try:
            settings.check_method(METHODS.spec(settings.method))
        except ValueError as error:
            problems[path] = Problem(path, str(error))
        try:
            check_labels(study, settings, path)
        except ValueError as error:
            problems[f"{path}.method"] = Problem("", str(error))
    return list(problems.values())


def _check_call(study: Study, path: str, registry: Registry, name: str) -> None:
    """Import a user's own function, and compare its parameters with what it is called with."""
    function = registry.load(name)
    if registry.kind not in _ARGUMENTS or isinstance(function, type):
        return
    number, keywords = _ARGUMENTS[registry.kind]
    options: Mapping[str, object] = {}
    if path == "partition.scheme" and isinstance(study.partition, OwnPartition):
        options = study.partition.options
    elif path == "data.source":
        options = study.data.options
    elif path == "data.transfer.source":
        options = study.data.transfer.options
    elif registry is LOCAL_LOSSES:
        arm = path.split(".")[1] if path.startswith("arms.") else next(iter(study.arms))
        options = study.rounds_of(arm).options or {}
    registry.check_call(name, *[None] * number, **{**dict.fromkeys(keywords), **options})


def _find_loss_problems(study: Study, known: Container[str]) -> dict[str, Problem]:
    """Return which settings the user's own local losses do not use, by path."""
    problems: dict[str, Problem] = {}
    for arm in study.arms:
        rounds, path = study.rounds_of(arm), _rounds_path(study, arm)
        own = LOCAL_LOSSES.is_own(rounds.local_loss)
        # The loss of deployed silos is refused elsewhere, and not imported here.
        if not own or study.is_deployed or f"{path}.local_loss" in known:
            continue
        try:
            rounds.check_local_loss(LOCAL_LOSSES.spec(rounds.local_loss))
        except ValueError as error:
            problems[f"arms.{arm}.rounds"] = Problem(f"arms.{arm}.rounds", str(error))
    return problems


def function_keys(study: Study, arm: str) -> list[str]:
    """Return what an arm's functions of the user's own stand for, for cache keys.

    Architectures have keys of their own: see :func:`fedkd.models.build.arch_fingerprint`.
    """
    return [registry.fingerprint(name) for _, registry, name in _own(_functions(study, arm))]


def names_at_silo(study: Study, silo: str) -> list[Named]:
    """Return the functions of the user's own that a deployed silo needs; none is imported here.

    Methods, weightings and the other silos' architectures are needed where a silo distils.
    """
    distils = study.data.transfer.at_silo
    sections = ("rounds", "consolidation") if distils else ("rounds",)
    others = {f"model.per_silo.{name}" for name in study.silo_names if name != silo}
    named = [each for each in _architectures(study) if distils or each[0] not in others]
    for arm in study.arms:
        for path, registry, name in _functions(study, arm):
            asked = any(registry is each for each in _ASKED_OF_SILOS)
            if asked and path.split(".")[-2] in sections:
                named.append((path, registry, name))
    return list(_own(iter(named)))


def _own(named: Iterator[Named]) -> Iterator[Named]:
    return (each for each in named if each[1].is_own(each[2]))


def _architectures(study: Study) -> Iterator[Named]:
    yield "model.arch", ARCHITECTURES, study.model.arch
    for silo, arch in study.model.per_silo.items():
        yield f"model.per_silo.{silo}", ARCHITECTURES, arch
    for name, arm in study.arms.items():
        yield f"arms.{name}.arch", ARCHITECTURES, arm.arch or ""


def _functions(study: Study, name: str) -> Iterator[Named]:
    """Yield all names of an arm, and of the study's data, but architectures."""
    arm = study.arms[name]
    yield "data.source", SOURCES, study.data.source
    yield "data.transfer.source", SOURCES, study.data.transfer.source or ""
    if isinstance(study.partition, Given):
        for silo, source in study.partition.silos.items():
            yield f"partition.silos.{silo}", SOURCES, source
    yield "partition.scheme", PARTITIONS, study.partition.scheme
    yield f"arms.{name}.start", STARTS, arm.start
    yield f"arms.{name}.strategy", STRATEGIES, arm.strategy
    settings_of_rounds = study.rounds_of(name)
    yield f"{_rounds_path(study, name)}.local_loss", LOCAL_LOSSES, settings_of_rounds.local_loss
    augmented = f"arms.{name}.rounds" if arm.rounds.augment else "rounds"
    yield f"{augmented}.augment", AUGMENTATIONS, settings_of_rounds.augment
    yield "pretraining.augment", AUGMENTATIONS, study.pretraining.augment
    if settings := arm.consolidation:
        yield f"arms.{name}.consolidation.method", METHODS, settings.method
        yield f"arms.{name}.consolidation.weighting", WEIGHTINGS, settings.weighting
        yield f"arms.{name}.consolidation.augment", AUGMENTATIONS, settings.augment


def _rounds_path(study: Study, arm: str) -> str:
    """Return the section that names an arm's local loss."""
    return f"arms.{arm}.rounds" if study.arms[arm].rounds.local_loss else "rounds"
