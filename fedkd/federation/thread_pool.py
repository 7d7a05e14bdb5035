"""The thread pool on which simulated silos train."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from fedkd.config import Study
from fedkd.util.parallel import available_cores


def silo_threads(study: Study) -> int:
    """Return the number of silos that train in parallel on this host."""
    workers = study.engine.workers
    return available_cores() if workers == "auto" else workers


def silo_pool(study: Study) -> ThreadPoolExecutor:
    """Return the pool on which silos train, with one intra-op thread per silo."""
    return ThreadPoolExecutor(
        silo_threads(study),
        thread_name_prefix="silo",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
