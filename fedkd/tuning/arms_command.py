"""One call from a study to a study in which every arm is tuned: ``fedkd tune --arms``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import optuna

from fedkd.config import RelativeTargets, Study
from fedkd.errors import UserError
from fedkd.federation.federation import Federation
from fedkd.federation.metric_check import check_metric_is_defined
from fedkd.federation.prepare import load_federations, pretrain_all
from fedkd.suggestions import suggest
from fedkd.tuning import store
from fedkd.tuning.arm_search import ArmSearch, RunArm, check_arm_trial, ended_trials, search_arm
from fedkd.tuning.arm_space import ArmSpace
from fedkd.tuning.arms_outcome import DATA_FILE, summarise_arm, tuned_study
from fedkd.tuning.outcome import TUNED_FILE, Searched
from fedkd.tuning.progress import ArmProgress
from fedkd.tuning.seeds import tuning_study
from fedkd.util import interrupt
from fedkd.util.files import write_json, write_text

SCHEMA = 1


def tune_arms(
    study: Study,
    arms: Sequence[str] | None,
    *,
    seeds: Sequence[int],
    trials: int,
    out: Path,
    pool: Executor,
    make_runner: Callable[[Sequence[Federation]], RunArm],
    progress: ArmProgress,
    fresh: bool = False,
) -> Searched:
    """Give every arm the same number of trials and write the best of each as a study.

    Baselines come first. No seed of the trials may be one of the study. Files go to
    ``<out>/<study>/``.

    Raises:
        UserError: the study or an arm cannot be tuned, or a file contains another search.
        FedKDError: no trial of an arm has a result.
    """
    names = choose_arms(study, arms)
    tuning = _trial_study(study, seeds)
    federations = _load(tuning, progress)
    interrupt.advise("The same command resumes from the trials that have ended.")
    folder = out / study.name
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "study": study.name,
        "seeds": list(seeds),
        "trials": trials,
        "arms": {},
        "interrupted": False,
    }
    try:
        if tuning.needs_pretrained:
            pretrain_all(federations, pool, progress)
        run = make_runner(federations)
        targets = find_targets(tuning, run)
        results["targets"] = {str(seed): target for seed, target in targets.items()}
        for name in names:
            arm = ArmSearch(tuning, name, ArmSpace(tuning, name), targets, run)
            key = store.arm_search_key(tuning, name, federations, targets)
            path = folder / f"tune-arm-{name}.db"
            with store.opened(path, f"{study.name}/{name}", "arm", key, fresh=fresh) as search:
                results["arms"][name] = _tune_arm(search, path, arm, trials, progress)
    except KeyboardInterrupt:
        if not results["arms"]:
            raise
        results["interrupted"] = True
    data, tuned = folder / DATA_FILE, folder / TUNED_FILE
    write_json(data, results)
    if results["interrupted"]:
        return Searched(results, data, None)
    write_text(tuned, tuned_study(study, results))
    return Searched(results, data, tuned)


def choose_arms(study: Study, wanted: Sequence[str] | None) -> list[str]:
    """Return the arms to tune, baselines first.

    Raises:
        UserError: there is no such arm, or one is named twice.
    """
    names = [*study.baselines, *(name for name in study.arms if name not in study.baselines)]
    if wanted is None:
        return names
    for name in wanted:
        if name not in study.arms:
            raise UserError(
                f"--arms: no arm is named {name!r}{suggest(name, names)}; the study has "
                f"{', '.join(names)}; all stands for every arm"
            )
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"--arms: {','.join(wanted)!r} names no arm, or one twice")
    return [name for name in names if name in wanted]


def find_targets(study: Study, run: RunArm) -> dict[int, float]:
    """Return the highest target of each seed, as a value of the study's metric.

    Targets that are fractions of the first baseline's best are measured by a whole run of that
    baseline with the study's settings.
    """
    highest = max(study.target_values)
    if not isinstance(study.targets, RelativeTargets):
        return dict.fromkeys(study.seeds, highest)
    targets = {}
    for seed in study.seeds:
        accuracies: list[float] = []

        def on_point(_: int, accuracy: float, accuracies: list[float] = accuracies) -> bool:
            accuracies.append(accuracy)
            return True

        run(study, study.baselines[0], seed, on_point)
        targets[seed] = highest * max(accuracies)
    return targets


def _trial_study(study: Study, seeds: Sequence[int]) -> Study:
    """Return the study with the seeds and the engine of the trials."""
    if study.data.validation == 0:
        raise UserError("data.validation: is 0, but arms are tuned on validation examples; set it")
    # One intra-op thread for each trial, so that trials run side by side with the same bits.
    engine = study.engine.model_copy(update={"server_threads": 1, "name": "inline"})
    return tuning_study(study, seeds).model_copy(update={"engine": engine})


def _load(study: Study, progress: ArmProgress) -> list[Federation]:
    federations, warnings = load_federations(study, Federation.load)
    for split in [federation.split for federation in federations]:
        labels = split.validation.labels
        check_metric_is_defined(
            study.metric, labels, split.num_classes, split.classes, "validation examples"
        )
    for sentence in warnings:
        progress.warn(sentence)
    if study.needs_transfer:
        federations[0].require_transfer()
    return federations


def _tune_arm(
    search: optuna.Study, path: Path, arm: ArmSearch, trials: int, progress: ArmProgress
) -> Mapping[str, Any]:
    """Search the settings of one arm and return its results as plain values."""
    store.check_trials(
        path, search.get_trials(deepcopy=False), lambda trial: check_arm_trial(trial, arm.space)
    )
    search_arm(search, arm, trials=trials, progress=progress)
    ended = ended_trials(search.get_trials())
    return summarise_arm(arm.arm, [ended[slot] for slot in sorted(ended)], arm.space)
