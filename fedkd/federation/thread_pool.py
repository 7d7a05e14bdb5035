"""How a study is computed on this machine: its device, threads and silos at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from fedkd.config import Study
from fedkd.training.compute import find_device
from fedkd.util.parallel import available_cores


def on_this_machine(study: Study) -> Study:
    """Return the study with a device and a number in place of ``auto``, as this machine has them.

    Both decide the last bits, so that they stand in results and in keys of the cache.
    """
    engine = study.engine
    values = {"device": find_device(engine.device), "silo_threads": engine.silo_threads}
    if engine.silo_threads == "auto":
        cores = available_cores()
        at_once = cores if engine.workers == "auto" else engine.workers
        values["silo_threads"] = max(1, cores // max(1, min(at_once, study.num_silos)))
    return study.model_copy(update={"engine": engine.model_copy(update=values)})


def silos_at_once(study: Study) -> int:
    """Return the number of silos that train in parallel on this host."""
    engine = on_this_machine(study).engine
    if engine.workers != "auto":
        return engine.workers
    return max(1, available_cores() // int(engine.silo_threads))


def silo_pool(study: Study) -> ThreadPoolExecutor:
    """Return the pool on which silos train; each sets the number of its own intra-op threads."""
    return ThreadPoolExecutor(
        silos_at_once(study),
        thread_name_prefix="silo",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
