"""One call from a study to a study with a tuned start: ``fedkd tune --arm``."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

from fedkd.config import Study
from fedkd.errors import UserError
from fedkd.federation.prepare import load_for_students, pretrain_all
from fedkd.suggestions import suggest
from fedkd.training.compute import intra_op_threads
from fedkd.tuning import store
from fedkd.tuning.objective import choose_judge
from fedkd.tuning.outcome import Searched, summarise, write_outcome
from fedkd.tuning.progress import Progress
from fedkd.tuning.search import StartSearch
from fedkd.tuning.seeds import SEEDS, tuning_study
from fedkd.tuning.student import SeedObjective, make_space
from fedkd.util import interrupt


def tune(
    study: Study,
    arm: str | None = None,
    *,
    out: Path,
    pool: Executor,
    progress: Progress,
    seeds: Sequence[int] = SEEDS,
    kind: store.Kind = "tpe",
    trials: int | None = None,
    proxy: bool = False,
    fresh: bool = False,
) -> Searched:
    """Search the settings of one consolidating arm's start and write the best as a study.

    By default the arm is the first that consolidates, a grid is tried whole, and TPE makes 30
    trials. No seed of the trials may be one of the study. With ``proxy`` students are scored
    without validation data although there are some, and how well that agrees with these is
    measured. Files go to ``<out>/<study>/``.

    Raises:
        UserError: the study or the arm cannot be tuned, or the file contains another search.
        FedKDError: no trial has a result.
    """
    name = choose_arm(study, arm)
    judge = choose_judge(study, proxy=proxy)
    tuning = tuning_study(study, seeds)
    federations = load_for_students(tuning, progress)
    folder = out / study.name
    path = folder / f"tune-{name}.db"
    key = store.search_key(tuning, name, federations, kind, judge)
    interrupted = False
    with store.opened(path, f"{study.name}/{name}", kind, key, fresh=fresh) as trials_file:
        interrupt.advise("The same command resumes from the trials that have ended.")
        pretrain_all(federations, pool, progress)
        with intra_op_threads(study.engine.server_threads):
            seed_objectives = [
                SeedObjective.of(federation, name, judge) for federation in federations
            ]
        space = make_space(seed_objectives[0].teachers, judge)
        store.check_trials(
            path,
            trials_file.get_trials(deepcopy=False),
            lambda trial: store.check_start_trial(trial, space),
        )
        try:
            search = StartSearch(trials_file, name, space, seed_objectives, progress)
            search.run(kind, trials)
        except KeyboardInterrupt:
            if not trials_file.get_trials(deepcopy=False, states=store.ENDED):
                raise
            interrupted = True
        results = summarise(tuning, name, trials_file.get_trials(), space, kind=kind, judge=judge)
    results["interrupted"] = interrupted
    return write_outcome(study, results, folder)


def choose_arm(study: Study, arm: str | None) -> str:
    """Return the arm to tune.

    Raises:
        UserError: there is no such arm, it does not consolidate, or no server can try its
            settings.
    """
    able = [name for name, each in study.arms.items() if each.consolidation is not None]
    if arm is None:
        if not able:
            raise UserError(f"{study.name}: no arm consolidates, so there is nothing to tune")
        arm = able[0]
    if arm not in study.arms:
        known = ", ".join(able) or "none"
        raise UserError(
            f"--arm: no arm is named {arm!r}{suggest(arm, able)}; those that consolidate: {known}"
        )
    settings = study.arms[arm].consolidation
    if settings is None:
        raise UserError(
            f"--arm: {arm} does not consolidate (start: {study.arms[arm].start}), so it has no "
            f"start to tune; those that do: {', '.join(able) or 'none'}; --arms {arm} tunes its "
            "rounds"
        )
    if study.data.transfer.at_silo:
        raise UserError(
            "data.transfer.source: student-silo keeps the transfer examples on the student's silo, "
            "where no server can try settings on them; tune on another transfer set"
        )
    if settings.epochs == 0:
        raise UserError(
            f"arms.{arm}.consolidation.epochs: 0 leaves nothing to tune; set some, or choose "
            "another arm"
        )
    if settings.uses_densities and settings.familiarity.basis == "features":
        raise UserError(
            f"arms.{arm}.consolidation.familiarity.basis: features is not tuned, as its basis is "
            "a model of the federation; use pixels"
        )
    return arm
