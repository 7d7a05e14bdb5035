"""Which arms, baselines and silos of a study are valid together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedkd.config.backbone import check_lda_head
from fedkd.config.sections import refuse_options
from fedkd.config.targets import RelativeTargets
from fedkd.config.transfer_checks import check_at_silo, check_labels
from fedkd.registry import LOCAL_LOSSES, METHODS, STARTS
from fedkd.suggestions import suggest

if TYPE_CHECKING:
    from fedkd.config.study import Study


def check_arms(study: Study) -> None:
    """Refuse an arm whose name and start contradict each other."""
    for name, arm in study.arms.items():
        named = name == "fedkd" or name.startswith("fedkd-")
        control = name.startswith("control-")
        if arm.start == "consolidated" and not (named or control):
            raise ValueError(
                f"arms.{name}: an arm that consolidates is named fedkd, fedkd-... or control-..."
            )
        if arm.start != "consolidated" and named:
            raise ValueError(
                f"arms.{name}: the name says that it consolidates but start is {arm.start!r}"
            )


def check_baselines(study: Study) -> None:
    """Refuse a baseline that is not an arm, and relative targets without one."""
    for name in study.baselines:
        if name not in study.arms:
            raise ValueError(
                f"baselines: no arm is named {name!r}{suggest(name, list(study.arms))}"
            )
    if isinstance(study.targets, RelativeTargets) and not study.baselines:
        raise ValueError("targets.of_baseline_best: needs at least one arm under baselines")


def check_tuning_seeds(study: Study) -> None:
    """Refuse an arm that was tuned on a seed of the study."""
    for name, arm in study.arms.items():
        if shared := set(arm.tuned.seeds if arm.tuned else ()) & set(study.seeds):
            raise ValueError(
                f"arms.{name}.tuned.seeds: the arm was tuned on seed {min(shared)}, so it cannot "
                "be judged on it; take other seeds, or tune it anew"
            )


def check_silo_names(study: Study) -> None:
    """Refuse keys by silo that name a silo which the study does not have."""
    known = set(study.silo_names)
    for key, mapping in (
        ("model.per_silo", study.model.per_silo),
        ("pretraining.checkpoints", study.pretraining.checkpoints),
        ("pretraining.preprocessing", study.pretraining.preprocessing),
    ):
        for silo in mapping:
            if silo not in known:
                names = (
                    ", ".join(study.silo_names)
                    if study.is_deployed or study.has_own_split
                    else f"silo-0 to silo-{study.num_silos - 1}"
                )
                raise ValueError(f"{key}: no silo is named {silo!r}; they are {names}")


def check_needs(study: Study) -> None:
    """Refuse an arm that needs data or models which the study does not have."""
    for name, arm in study.arms.items():
        settings = arm.consolidation
        chosen = settings.student if settings else arm.start
        _check_architectures(study, name, chosen)
        rounds = study.rounds_of(name)
        try:
            refuse_options(rounds.options, LOCAL_LOSSES, rounds.local_loss)
            if not LOCAL_LOSSES.is_own(rounds.local_loss):
                rounds.check_local_loss(LOCAL_LOSSES.spec(rounds.local_loss))
        except ValueError as error:
            raise ValueError(f"arms.{name}.rounds.{error}") from None
        if study.data.validation == 0 and (
            chosen == "best" or (settings and settings.needs_validation)
        ):
            raise ValueError(
                f"arms.{name}: compares models on validation data, but data.validation is 0"
            )
        if arm.strategy == "feddf" and study.data.transfer.at_silo:
            raise ValueError(
                f"arms.{name}.strategy: feddf distils on the server, but data.transfer.source is "
                "student-silo"
            )
        if settings is None:
            continue
        path = f"arms.{name}.consolidation"
        if not METHODS.is_own(settings.method):
            check_labels(study, settings, path)
        if study.data.transfer.at_silo:
            try:
                check_at_silo(settings)
            except ValueError as error:
                raise ValueError(f"{path}.{error}") from None


def _check_architectures(study: Study, name: str, chosen: str) -> None:
    """Refuse an arm that starts from silos' models of which none has its architecture."""
    start = study.arms[name].start
    if start in ("random", "checkpoint") or STARTS.is_own(start):
        return
    arch = study.global_arch(name)
    if chosen == "lda-head":
        check_lda_head(study, name)
        return
    others = sorted({study.arch_of(silo) for silo in study.silo_names})
    if chosen != "fresh" and arch not in others:
        key = "consolidation.student" if study.arms[name].consolidation else "start"
        raise ValueError(
            f"arms.{name}.{key}: {chosen} needs a silo whose model is {arch}, but they are "
            f"{', '.join(others)}; use "
            + ("student: fresh" if study.arms[name].consolidation else "start: random")
        )
    settings = study.arms[name].consolidation
    if settings and settings.uses_features and arch not in others:
        raise ValueError(
            f"arms.{name}.consolidation.familiarity.basis: features averages silos' models of the "
            f"architecture {arch}, but they are {', '.join(others)}; use basis: pixels"
        )
