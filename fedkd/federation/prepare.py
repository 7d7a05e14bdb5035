"""Load, check and pre-train a study's federations, as several commands need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from fedkd.config import Study
from fedkd.config.study_file import check_files
from fedkd.federation.check import check_study
from fedkd.federation.federation import Federation
from fedkd.util.cache import cache_root, check_cache_root


class PreparationProgress(Protocol):
    """Shows warnings and the progress of pre-training."""

    def warn(self, sentence: str) -> None:
        """Show a warning."""

    def pretraining(self, seed: int, total: int) -> AbstractContextManager[Callable[[], None]]:
        """Return a context that yields a function to call for every silo."""


def load_federations(
    study: Study, load: Callable[[Study, int, Path], Federation]
) -> tuple[list[Federation], tuple[str, ...]]:
    """Return a checked federation for each seed, and warnings about the study.

    Raises:
        UserError: the study does not fit the data, the files or the cache folder.
    """
    check_files(study)
    check_cache_root()
    cache = cache_root()
    federations = [load(study, seed, cache) for seed in study.seeds]
    return federations, check_study(federations)


def load_for_students(study: Study, progress: PreparationProgress) -> list[Federation]:
    """Load the federations of a command that distils students, and show the warnings.

    Raises:
        UserError: as in :func:`load_federations`, or there is no transfer set.
    """
    federations, warnings = load_federations(study, Federation.load)
    for sentence in warnings:
        progress.warn(sentence)
    federations[0].require_transfer()
    return federations


def pretrain_all(
    federations: Sequence[Federation],
    pool: Executor,
    progress: PreparationProgress,
    *,
    fresh: bool = False,
) -> None:
    """Pre-train the models of all silos that have no checkpoint."""
    for federation in federations:
        study = federation.study
        total = study.num_silos - len(study.pretraining.checkpoints)
        with progress.pretraining(federation.seed, total) as on_silo:
            federation.pretrain(pool, fresh=fresh, on_silo=on_silo)
