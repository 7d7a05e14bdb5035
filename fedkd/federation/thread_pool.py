"""The thread pool on which simulated silos train."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from fedkd.config import Study
from fedkd.util.parallel import available_cores


def silo_pool(study: Study) -> ThreadPoolExecutor:
    """Return the pool on which silos train, with one intra-op thread per silo."""
    workers = study.engine.workers
    size = available_cores() if workers == "auto" else workers
    return ThreadPoolExecutor(
        size, thread_name_prefix="silo", initializer=torch.set_num_threads, initargs=(1,)
    )
