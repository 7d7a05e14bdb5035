"""The Flower ServerApp: read the run config, serve one arm, leave its record on disk."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedkd.errors import FedKDError, RemoteError
from fedkd.messages import keys
from fedkd.models.card import ModelCard, save_model
from fedkd.registry import STRATEGIES
from fedkd.results.observer import Observer
from fedkd.results.record import (
    CHECKPOINT_FILE,
    Point,
    RunRecord,
    append_point,
    model_files,
    write_points,
    write_state,
)
from fedkd.training.compute import intra_op_threads
from fedkd.util.files import hash_file, remove_unfinished, write_text
from fedkd.util.lock import lock_folder
from strategies.context import RunContext
from strategies.diagnostics import diagnose
from strategies.evaluate_models import serve_evaluation
from strategies.evaluation import central_evaluation, targets_reached
from strategies.fedavg import SiloFedAvg, initial_arrays
from strategies.fedkd import FedKD
from strategies.run_config import read_context, state_folder
from strategies.run_log import RunLog
from strategies.run_state import RunState
from strategies.savepoint import CheckpointWriter
from strategies.send_models import send_models
from strategies.table_columns import learn_columns
from strategies.updates import KeepAverage, ServerUpdate

ERROR_FILE = "error.txt"
FAULT_FILE = "traceback.txt"
LOCK_WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Serving:
    """One run to serve: its context, the folder for its record, and an observer.

    ``log`` sends the record to a caller on another host; None if the caller can read the folder.
    """

    context: RunContext
    folder: Path
    observer: Observer
    log: RunLog | None = None


class _Recorder:
    """Writes every point to disk before the observer receives it."""

    def __init__(self, folder: Path, observer: Observer) -> None:
        self._folder = folder
        self._observer = observer

    def on_point(self, point: Point) -> None:
        append_point(self._folder, point)
        self._observer.on_point(point)

    def on_distillation(self, epoch: int, epochs: int) -> None:
        self._observer.on_distillation(epoch, epochs)

    def on_waiting(self, reason: str) -> None:
        self._observer.on_waiting(reason)


def make_server_app(find: Callable[[Context], Serving]) -> ServerApp:
    """Return a ServerApp that serves the run that ``find`` returns for a Flower context."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, flower_context: Context) -> None:
        serving = find(flower_context)
        try:
            serve(grid, serving, run_id=f"{flower_context.run_id % 2**64:016x}")
        except FedKDError as error:
            write_text(serving.folder / ERROR_FILE, str(error))
            if serving.log is not None:
                serving.log.on_error(str(error))
            raise
        except Exception as error:
            # A local engine in another process shows it; who reads a log finds it there.
            if serving.log is None:
                text = str(error) if isinstance(error, RemoteError) else traceback.format_exc()
                write_text(serving.folder / FAULT_FILE, text)
            raise
        if serving.log is not None:
            serving.log.on_end(serving.folder)

    return app


def serve(grid: Grid, serving: Serving, *, run_id: str) -> None:
    """Run one arm and write its record: ``rounds.jsonl``, the final model, ``state.json``.

    A run that was cut short in the same folder, or that has ended and may now go on, is resumed
    from its last whole round; but for seconds, its record is that of an undisturbed run. Its state
    is kept.

    Raises:
        UserError: another process writes to the folder.
        FedKDError: the folder holds another run, or the run cannot continue.
    """
    # An engine that was killed takes a moment to end the server that it had started.
    with lock_folder(serving.folder, wait=LOCK_WAIT_SECONDS):
        _serve(grid, serving, run_id)


def _serve(grid: Grid, serving: Serving, run_id: str) -> None:
    context, folder = serving.context, serving.folder
    remove_unfinished(folder)
    begun = RunState(folder)
    if context.study.is_table and context.study.is_deployed:
        context, ledger = learn_columns(grid, context, serving.observer, run_id)
        begun = RunState(folder, quarantined=ledger.quarantined, spent=ledger.traffic)
    checkpoint_writer = CheckpointWriter(folder, context)
    with intra_op_threads(context.study.engine.server_threads):
        initial = [initial_arrays(context)]
        saved = checkpoint_writer.read(dict(initial[0].to_torch_state_dict()))
        if saved is not None and targets_reached(context, saved.curve[:-1]):
            saved = None  # to higher targets: with these ones the run ends in an earlier round
        # The save point is what counts: a line may have been cut short or be missing.
        write_points(folder, saved.curve if saved else ())
        for point in saved.curve if saved else ():
            serving.observer.on_point(point)
        strategy = make_strategy(
            context,
            _Recorder(folder, serving.observer),
            run_id,
            checkpoint_writer=checkpoint_writer,
            state=saved or begun,
        )
        strategy.start(
            grid,
            initial.pop(),  # it is not kept here while the run goes on
            num_rounds=context.rounds.max,
            timeout=context.rounds.timeout,
            evaluate_fn=central_evaluation(context),
        )
        state = strategy.state
        instruments = diagnose(context, state)
    card = ModelCard(context.arch, context.shape, context.classes, columns=context.encoder)
    save_model(folder / CHECKPOINT_FILE, state.model, card)
    write_state(
        folder,
        RunRecord(
            arm=context.arm_name,
            seed=context.seed,
            engine=context.study.engine.name,
            curve=tuple(state.curve),
            stopped=state.stopped,
            exchanges_before_round_1=state.exchanges_before_round_1,
            max_rounds=context.rounds.max,
            targets=context.targets,
            accuracy_source="silos" if context.test is None else "test",
            quarantined=tuple(state.quarantined),
            notes=state.notes,
            silos_get=state.silos_get,
            instruments=instruments,
            metric=context.study.metric,
            models={path.name: hash_file(path) for path in model_files(folder)},
        ),
    )


def make_strategy(
    context: RunContext,
    observer: Observer,
    run_id: str,
    *,
    checkpoint_writer: CheckpointWriter | None = None,
    state: RunState | None = None,
) -> SiloFedAvg:
    """Return the server's strategy of an arm, which its ``start`` and ``strategy`` name.

    An arm that consolidates is a FedKD, any other a SiloFedAvg. A ``strategy`` of the user's own
    may also be a class derived from one of them.
    """
    kind: type[SiloFedAvg] = FedKD if context.arm.start == "consolidated" else SiloFedAvg
    update: ServerUpdate | None = None
    named: object = STRATEGIES.load(context.arm.strategy)
    if isinstance(named, type) and issubclass(named, SiloFedAvg):
        kind, update = named, KeepAverage(context)
    return kind(
        context, observer, run_id, checkpoint_writer=checkpoint_writer, state=state, update=update
    )


def read_run(flower_context: Context) -> Serving:
    """Read the run config of a run on a SuperLink.

    A local engine names the folder for the record. Callers on other hosts see only the log of the
    run: the folder is then one of this host's own.

    Raises:
        FedKDError: the run config is not that of a study.
    """
    log = RunLog()
    config = {key: str(value) for key, value in flower_context.run_config.items()}
    try:
        context = read_context(config)
        if folder := config[keys.CONFIG_RUN_DIR]:
            return Serving(context, Path(folder), log)
        name = config[keys.CONFIG_RUN_NAME] or f"run-{flower_context.run_id % 2**64:016x}"
        folder_here = state_folder(context.study.name, name, context.arm_name, context.seed)
        return Serving(context, folder_here, log, log)
    except FedKDError as error:
        log.on_error(str(error))
        raise


app = ServerApp()
_train_app = make_server_app(read_run)


@app.main()
def main(grid: Grid, flower_context: Context) -> None:
    """Serve a run of an arm, evaluate given models, or send those of earlier runs."""
    if asked := flower_context.run_config.get(keys.CONFIG_FETCH):
        send_models(str(asked))
    elif flower_context.run_config.get(keys.CONFIG_MODELS):
        serve_evaluation(grid, flower_context)
    else:
        _train_app(grid, flower_context)
