"""The Flower ServerApp: read the run config, serve one arm, leave its record on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd import wire
from fedkd.cache import cache_root
from fedkd.errors import FedKDError
from fedkd.federation import Federation
from fedkd.files import write_text
from fedkd.model_card import ModelCard, save_model
from fedkd.results import CHECKPOINT_FILE, Point, RunRecord, append_point, write_state
from fedkd.study_file import parse_study
from fedkd.training import intra_op_threads
from strategies.examine import examine
from strategies.fedavg import SiloFedAvg, central_evaluation, initial_arrays
from strategies.fedkd import FedKD
from strategies.run_log import RunLog
from strategies.setting import Observer, Setting

ERROR_FILE = "error.txt"


@dataclass(frozen=True)
class Serving:
    """One run to serve: the setting, the folder for its record, who watches.

    ``log`` is where a caller on another host learns the record; None where it sees the folder.
    """

    setting: Setting
    folder: Path
    observer: Observer
    log: RunLog | None = None


class _Recorder:
    """Writes every point to disk before anyone else hears of it."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        self._folder = folder
        self._observer = observer

    def on_point(self, point: Point) -> None:
        append_point(self._folder, point)
        self._observer.on_point(point)

    def on_distillation(self, epoch: int, epochs: int) -> None:
        self._observer.on_distillation(epoch, epochs)


def make_server_app(find: Callable[[Context], Serving]) -> ServerApp:
    """Return a ServerApp that serves the run which ``find`` reads from the context."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        serving = find(context)
        try:
            serve(grid, serving, run_id=f"{context.run_id % 2**64:016x}")
        except FedKDError as error:
            write_text(serving.folder / ERROR_FILE, str(error))
            if serving.log is not None:
                serving.log.on_error(str(error))
            raise
        if serving.log is not None:
            serving.log.on_end(serving.folder)

    return app


def serve(grid: Grid, serving: Serving, *, run_id: str) -> None:
    """Run one arm and write its record: ``rounds.jsonl``, the final model, ``state.json``."""
    setting, folder = serving.setting, serving.folder
    recorder = _Recorder(folder, serving.observer)
    strategy_type = FedKD if setting.arm.start == "consolidated" else SiloFedAvg
    strategy = strategy_type(setting, recorder, run_id)
    with intra_op_threads(setting.study.engine.server_threads):
        result = strategy.start(
            grid,
            initial_arrays(setting),
            num_rounds=setting.rounds.max,
            timeout=setting.rounds.timeout,
            evaluate_fn=central_evaluation(setting),
        )
        final = dict(result.arrays.to_torch_state_dict())
        instruments = examine(strategy, final)
    card = ModelCard(setting.arch, setting.shape, setting.classes)
    save_model(folder / CHECKPOINT_FILE, final, card)
    write_state(
        folder,
        RunRecord(
            arm=setting.arm_name,
            seed=setting.seed,
            engine=setting.study.engine.name,
            curve=tuple(strategy.curve),
            stopped=strategy.stopped,
            exchanges_before_round_1=strategy.exchanges_before_round_1,
            max_rounds=setting.rounds.max,
            targets=setting.targets,
            accuracy_source="silos" if setting.test is None else "test",
            quarantined=tuple(strategy.ledger.quarantined),
            notes=strategy.notes,
            instruments=instruments,
        ),
    )


def read_run(context: Context) -> Serving:
    """Read the run config of a run on a SuperLink.

    A local engine names the folder for the record. Others see no more of this host than the log of
    the run: the folder is then one of this host's own.

    Raises:
        FedKDError: the run config is none of a study.
    """
    log = RunLog()
    config = {key: str(value) for key, value in context.run_config.items()}
    try:
        cache = Path(config[wire.CONFIG_CACHE_DIR] or cache_root())
        study = parse_study(config[wire.CONFIG_STUDY], origin="run config: study")
        arm, seed = config[wire.CONFIG_ARM], int(config[wire.CONFIG_SEED])
        if arm not in study.arms:
            raise FedKDError(f"run config: arm: the study has no arm {arm!r}")
        targets = json.loads(config[wire.CONFIG_TARGETS] or "[]") or study.absolute_targets or []
        setting = Setting.of(Federation.on_server(study, seed, cache), arm, tuple(targets))
    except FedKDError as error:
        log.on_error(str(error))
        raise
    if folder := config[wire.CONFIG_RUN_DIR]:
        return Serving(setting, Path(folder), log)
    own = state_root() / study.name / arm / f"seed-{seed}" / f"{context.run_id % 2**64:016x}"
    return Serving(setting, own, log, log)


def state_root() -> Path:
    """Where this host keeps records and models of runs that another host asked for."""
    named = os.environ.get("FEDKD_STATE_DIR")
    return Path(named).expanduser() if named else cache_root() / "flwr-runs"


app = make_server_app(read_run)
