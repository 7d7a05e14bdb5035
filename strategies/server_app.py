"""The Flower ServerApp: read the run config, serve one arm, leave its record on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd import wire
from fedkd.cache import cache_root
from fedkd.errors import FedKDError
from fedkd.federation import Federation
from fedkd.files import remove_unfinished, write_text
from fedkd.lease import lease
from fedkd.model_card import ModelCard, save_model
from fedkd.results import (
    CHECKPOINT_FILE,
    Point,
    RunRecord,
    append_point,
    write_points,
    write_state,
)
from fedkd.study_file import parse_study
from fedkd.training import intra_op_threads
from strategies.examine import examine
from strategies.fedavg import SiloFedAvg, central_evaluation, initial_arrays
from strategies.fedkd import FedKD
from strategies.savepoint import Keeper
from strategies.setting import Observer, Setting

ERROR_FILE = "error.txt"
LEASE_SECONDS = 30.0


@dataclass(frozen=True)
class Serving:
    """One run to serve: the setting, the folder for its record, who watches."""

    setting: Setting
    folder: Path
    observer: Observer


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


class _Printer:
    """Tells the run's log how it goes: all that a remote caller sees."""

    def on_point(self, point: Point) -> None:
        print(f"round {point.round}: accuracy {point.accuracy:.4f}", flush=True)  # noqa: T201 -- the log

    def on_distillation(self, epoch: int, epochs: int) -> None:
        if epoch == epochs:
            print(f"distilled for {epochs} epochs", flush=True)  # noqa: T201 -- the log


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
            raise

    return app


def serve(grid: Grid, serving: Serving, *, run_id: str) -> None:
    """Run one arm and write its record: ``rounds.jsonl``, the final model, ``state.json``.

    A run that was cut short in the same folder goes on from its last whole round, to the same
    record as if nothing had happened, but for seconds.

    Raises:
        UserError: another process writes to the folder.
        FedKDError: what lies there belongs to another run, or the run cannot go on.
    """
    # An engine that was killed takes a moment to end the server that it had started.
    with lease(serving.folder, wait=LEASE_SECONDS):
        _serve(grid, serving, run_id)


def _serve(grid: Grid, serving: Serving, run_id: str) -> None:
    setting, folder = serving.setting, serving.folder
    remove_unfinished(folder)
    keeper = Keeper(folder, setting)
    with intra_op_threads(setting.study.engine.server_threads):
        initial = initial_arrays(setting)
        saved = keeper.read(dict(initial.to_torch_state_dict()))
        # The save point is what counts: a line may have been cut short or be missing.
        write_points(folder, saved.curve if saved else ())
        for point in saved.curve if saved else ():
            serving.observer.on_point(point)
        strategy_type = FedKD if setting.arm.start == "consolidated" else SiloFedAvg
        recorder = _Recorder(folder, serving.observer)
        strategy = strategy_type(setting, recorder, run_id, keeper=keeper, saved=saved)
        result = strategy.start(
            grid,
            initial,
            num_rounds=setting.rounds.max,
            timeout=setting.rounds.timeout,
            evaluate_fn=central_evaluation(setting),
        )
        final = dict(result.arrays.to_torch_state_dict())
        instruments = examine(setting, strategy.beginning, strategy.roster.values(), final)
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
    if strategy.stopped != "quorum":
        # A run that lacked silos can still go on once they are back.
        keeper.remove()


def simulated_run(context: Context) -> Serving:
    """Read the run config of a simulation, or of ``flwr run`` by hand."""
    config = {key: str(value) for key, value in context.run_config.items()}
    cache = Path(config[wire.CONFIG_CACHE_DIR] or cache_root())
    study = parse_study(config[wire.CONFIG_STUDY], origin="run config: study")
    arm = config[wire.CONFIG_ARM]
    if arm not in study.arms:
        raise FedKDError(f"run config: arm: the study has no arm {arm!r}")
    targets = json.loads(config[wire.CONFIG_TARGETS] or "[]") or study.absolute_targets or []
    federation = Federation.load(study, int(config[wire.CONFIG_SEED]), cache)
    folder = config[wire.CONFIG_RUN_DIR] or cache / "flwr-runs" / str(context.run_id)
    return Serving(Setting.of(federation, arm, tuple(targets)), Path(folder), _Printer())


app = make_server_app(simulated_run)
