"""One call from a study to the table of all its pairs: what ``fedkd pairs`` runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fedkd.config import Consolidation, Study
from fedkd.errors import FedKDError, UserError
from fedkd.federation.federation import Federation
from fedkd.federation.prepare import PreparationProgress, load_for_students, pretrain_all
from fedkd.federation.thread_pool import silos_at_once
from fedkd.pairs.log import LOG_FILE, Log
from fedkd.pairs.measure import COLUMNS, KD_TUNED, Pair, grid, make_pairs, measure
from fedkd.pairs.outcome import summarise
from fedkd.registry import METHODS
from fedkd.suggestions import suggest
from fedkd.util import interrupt
from fedkd.util.cache import cache_key
from fedkd.util.files import to_csv, write_json, write_text
from fedkd.util.parallel import run_each

_SETTINGS = ("epochs", "batch_size", "lr", "momentum")


class Progress(PreparationProgress, Protocol):
    """Shows the progress of the table; see :class:`fedkd.report.progress.PairsProgress`."""

    def on_row(self, ended: int, total: int) -> None:
        """Called with the number of rows that are measured."""


@dataclass(frozen=True)
class Measured:
    """The table, and its files."""

    results: dict[str, Any]
    data: Path
    table: Path

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C interrupted it."""
        return bool(self.results["interrupted"])


@dataclass(frozen=True, eq=False)
class _Job:
    pair: Pair
    method: str
    key: str


def measure_pairs(
    study: Study,
    *,
    out: Path,
    pool: Executor,
    progress: Progress,
    methods: Sequence[str] | None = None,
    epochs: int | None = None,
    fresh: bool = False,
) -> Measured:
    """Measure all ordered pairs of silos under all methods, on every seed.

    Rows in the log of an earlier call are reused unless something that determines them has
    changed. The order of the rows, and all of them but ``seconds``, are the same for any number
    of threads. Of the study's arms only the optimiser of the first that consolidates is used;
    ``epochs`` replaces its own. Files go to ``<out>/<study>/``.

    Raises:
        UserError: the study has no pairs, or a method is not available.
        FedKDError: fewer than two silos of a seed have a usable model.
    """
    chosen = choose_methods(study, methods)
    settings = choose_settings(study, epochs)
    if study.num_silos < 2:
        raise UserError("partition.silos: a pair needs two silos, but the study has one")
    federations = load_for_students(study, progress)
    interrupt.advise("The same command resumes from the rows that are measured.")
    pretrain_all(federations, pool, progress, fresh=fresh)
    jobs = [
        job for federation in federations for job in _jobs(federation, chosen, settings, progress)
    ]
    folder = out / study.name
    log = Log(folder / LOG_FILE, fresh=fresh)
    rows, interrupted = _measure_all(jobs, settings, silos_at_once(study), log, progress)
    results = {
        "study": study.name,
        "seeds": list(study.seeds),
        "methods": chosen,
        "settings": settings.model_dump(include=set(_SETTINGS)),
        "grid": grid(labelled=_labelled(study)) if KD_TUNED in chosen else [],
        "columns": COLUMNS,
        "summary": summarise(rows),
        "rows": rows,
        "missing": len(jobs) - len(rows),
        "interrupted": interrupted,
        "resolved": study.to_dict(),
    }
    data, table = folder / "pairs.json", folder / "pairs.csv"
    write_json(data, results)
    write_text(table, to_csv(rows))
    return Measured(results, data, table)


def choose_methods(study: Study, wanted: Sequence[str] | None) -> list[str]:
    """Return the methods to measure, by default all that the study allows.

    Raises:
        UserError: one is unknown, named twice, or needs what the study does not have.
    """
    labelled = _labelled(study)
    known = ["kd", KD_TUNED, *(name for name in METHODS if name != "kd")]
    if wanted is None:
        lacking = {name for name in METHODS if not labelled and _needs_labels(name)}
        lacking |= set() if study.data.validation else {KD_TUNED}
        return [name for name in known if name not in lacking]
    for name in wanted:
        if name != KD_TUNED:
            _check_method(name, known)
        if not labelled and _needs_labels(name):
            raise UserError(
                f"--methods: {name} learns from labels, but data.transfer.labelled is false"
            )
        if name == KD_TUNED and not study.data.validation:
            raise UserError(
                f"--methods: {name} selects by validation data, but data.validation is 0"
            )
    if not wanted or len(set(wanted)) < len(wanted):
        raise UserError(f"--methods: {','.join(wanted)!r} names no method, or one twice")
    return list(wanted)


def choose_settings(study: Study, epochs: int | None) -> Consolidation:
    """Return the optimiser's settings: the first consolidating arm's, or the defaults."""
    settings = [arm.consolidation for arm in study.arms.values() if arm.consolidation is not None]
    own = settings[0] if settings else Consolidation()
    kept = {key: getattr(own, key) for key in _SETTINGS}
    return Consolidation(**kept | ({} if epochs is None else {"epochs": epochs}))


def _labelled(study: Study) -> bool:
    return study.data.transfer.labelled or study.data.transfer.at_silo


def _needs_labels(name: str) -> bool:
    return name != KD_TUNED and "labels" in METHODS.spec(name).needs


def _check_method(name: str, known: list[str]) -> None:
    try:
        METHODS.check(name)
    except ValueError:
        raise UserError(
            f"--methods: no method is named {name!r}{suggest(name, known)}; known are "
            f"{', '.join(known)}, package.module:function"
        ) from None
    METHODS.load(name)


def _jobs(
    federation: Federation, methods: list[str], settings: Consolidation, progress: Progress
) -> Iterator[_Job]:
    for silo in federation.study.silo_names:
        if problem := federation.pretrained(silo).problem:
            progress.warn(f"seed {federation.seed}: {silo} is left out: {problem}")
    pairs = make_pairs(federation)
    if not pairs:
        raise FedKDError(f"seed {federation.seed}: fewer than two silos have a usable model")
    study = federation.study
    common = {
        "kind": "pair",
        "federation": federation.fingerprint(),
        "transfer": study.data.transfer.model_dump(),
        "engine": study.engine.model_dump(include={"precision", "device", "silo_threads"}),
        "settings": settings.model_dump(include=set(_SETTINGS)),
    }
    for pair in pairs:
        for method in methods:
            name = method if method == KD_TUNED else METHODS.fingerprint(method)
            names = [pair.teacher.silo, pair.student.silo, name]
            yield _Job(pair, method, cache_key({**common, "names": names}))


def _measure_all(
    jobs: Sequence[_Job], settings: Consolidation, threads: int, log: Log, progress: Progress
) -> tuple[list[dict[str, Any]], bool]:
    """Return the measured rows in the order of the jobs, and whether Ctrl-C interrupted them."""
    rows = {job.key: log.rows[job.key] for job in jobs if job.key in log.rows}
    missing = [job for job in jobs if job.key not in rows]
    interrupted = False

    def work(job: _Job) -> dict[str, Any]:
        return measure(job.pair, job.method, settings)

    progress.on_row(len(rows), len(jobs))
    try:
        for job, row in run_each(missing, work, threads=threads):
            log.append(job.key, row)
            rows[job.key] = row
            progress.on_row(len(rows), len(jobs))
    except KeyboardInterrupt:
        interrupted = True
    return [rows[job.key] for job in jobs if job.key in rows], interrupted
