"""From one study to its results: check, split, pre-train, run every arm and seed, compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedkd.config import Study
from fedkd.config.study_file import dump_study
from fedkd.engines import check_engine, make_engine
from fedkd.federation.federation import Federation
from fedkd.federation.prepare import load_federations
from fedkd.federation.thread_pool import silo_pool
from fedkd.report.progress import StudyProgress
from fedkd.results.folder import REPORT_FILE, STUDY_FILE, SUMMARY_FILE, find_run
from fedkd.runner import resume as resumption
from fedkd.runner.results_folder import make_results_folder
from fedkd.runner.study_runner import Outcome, StudyRunner
from fedkd.trackers import make_trackers
from fedkd.trackers.tracking import Tracking
from fedkd.util.files import remove_unfinished, write_text
from fedkd.util.lock import lock_folder


def execute(
    study: Study,
    console: Console,
    *,
    out: Path,
    fresh: bool = False,
    track: Sequence[str] = (),
    resume: Path | None = None,
    rounds: int | None = None,
) -> Outcome:
    """Run a study, or resume or lengthen that of a results folder, and show its progress."""
    with StudyProgress(console, len(study.arms) * len(study.seeds), study.metric) as progress:
        if resume is not None:
            return resume_study(resume, progress=progress, track=track, rounds=rounds)
        return run_study(study, out=out, fresh=fresh, progress=progress, track=track)


def run_study(
    study: Study, *, out: Path, fresh: bool, progress: StudyProgress, track: Sequence[str] = ()
) -> Outcome:
    """Run a study and write its results folder below ``out``.

    Nothing is written before the study is checked against data, models and files. If ``fresh``,
    what the cache holds is ignored and written anew. ``track`` names trackers, which change no
    result.

    Raises:
        UserError: the data or files do not contain what the study needs, or a tracker's package is
            not installed.
    """
    trackers = make_trackers(track)
    federations, warnings = _load(study, progress)
    study = federations[0].study
    with silo_pool(study) as pool, make_engine(study, pool) as engine:
        folder = make_results_folder(out, study, fresh=fresh)
        with lock_folder(folder), Tracking(trackers, study, folder, progress.warn) as tracking:
            runner = StudyRunner(
                study, engine, folder, progress, tracking, track, pool, fresh=fresh
            )
            return runner.run(federations, warnings)


def resume_study(
    folder: Path, *, progress: StudyProgress, track: Sequence[str] = (), rounds: int | None = None
) -> Outcome:
    """Resume an interrupted study in its results folder, or lengthen it to more rounds of all arms.

    Finished runs are kept, unless they used up fewer rounds; the interrupted one continues after
    its last complete round, and the others run as usual. The results equal those of an
    uninterrupted study. The folder of a study stands for its newest results.

    Raises:
        UserError: the results are missing, damaged or of another version of fedkd, another process
            writes to them, or the study cannot be lengthened.
    """
    trackers = make_trackers(track)
    folder = find_run(folder)
    with lock_folder(folder):
        study, fresh = resumption.read_beginning(folder)
        study = study if rounds is None else resumption.lengthen(study, rounds)
        federations, warnings = _load(study, progress)
        study = federations[0].study
        resumption.check_runs(folder, study)
        resumption.check_can_go_on(folder, study)
        remove_unfinished(folder)
        if rounds is not None:
            write_text(folder / STUDY_FILE, dump_study(study))
        with silo_pool(study) as pool, make_engine(study, pool) as engine:
            # A reader of the folder must not take the study for finished.
            for name in (SUMMARY_FILE, REPORT_FILE):
                (folder / name).unlink(missing_ok=True)
            with Tracking(trackers, study, folder, progress.warn) as tracking:
                runner = StudyRunner(
                    study, engine, folder, progress, tracking, track, pool, fresh=fresh
                )
                return runner.run(federations, warnings)


def check(study: Study) -> tuple[list[Federation], tuple[str, ...]]:
    """Check everything that the study names; return a federation per seed, and warnings.

    Raises:
        UserError: the data or files do not contain what the study needs.
    """
    check_engine(study)
    return load_federations(study, Federation.for_caller)


def _load(study: Study, progress: StudyProgress) -> tuple[list[Federation], tuple[str, ...]]:
    federations, warnings = check(study)
    for sentence in warnings:
        progress.warn(sentence)
    return federations, warnings
