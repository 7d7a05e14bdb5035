"""What each silo gets from a run, measured once the run has ended; none of it is timed."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace

from fedkd.engines.base import Task
from fedkd.federation.silos_get import SilosGet
from fedkd.models.card import read_card
from fedkd.models.own_checkpoint import read_model
from fedkd.results.record import CHECKPOINT_FILE, CUT_SHORT, RunRecord, write_state


class SiloMeasurements:
    """Measures runs of simulated silos; a silo's own model is measured once for each seed."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._by_seed: dict[int, SilosGet] = {}

    def add(self, task: Task, record: RunRecord) -> RunRecord:
        """Return the record of a run with what each silo gets, and write it.

        A run that was cut short, or has it already, is left as it is.
        """
        federation = task.federation
        if record.silos_get or record.stopped in CUT_SHORT or federation.study.is_deployed:
            return record
        measured = self._by_seed.get(federation.seed)
        if measured is None:
            measured = self._by_seed[federation.seed] = SilosGet(federation)
        path, arch = task.folder / CHECKPOINT_FILE, federation.study.global_arch(task.arm)
        card = read_card(path, what="the run's model")
        model = read_model(
            path,
            arch,
            federation.shape.merged,
            what="the run's model",
            preprocessing=None if card is None else card.preprocessing,
        )
        found = measured.measure(task.arm, model.state, self._pool)
        record = replace(record, silos_get=found)
        write_state(task.folder, record)
        return record
