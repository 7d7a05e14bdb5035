"""A run that trains nothing: every silo and the server measure models that a user names."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid

from fedkd.data.columns import Encoder
from fedkd.errors import FedKDError, UserError
from fedkd.messages import keys
from fedkd.messages.evaluate import read_reply, write_question
from fedkd.models.build import Shape, build_model
from fedkd.models.card import read_card
from fedkd.models.given import find_given, read_given
from fedkd.models.state import State
from fedkd.results.evaluation import Evaluation, Measured, Unmeasured
from fedkd.results.observer import Observer
from fedkd.training.compute import intra_op_threads
from fedkd.training.evaluate import Metrics, evaluate
from strategies.context import RunContext
from strategies.introductions import gather
from strategies.roster import Member
from strategies.run_config import read_context, state_folder
from strategies.run_log import RunLog
from strategies.session import Session
from strategies.table_columns import encode_tables


@dataclass(frozen=True)
class NamedModel:
    """A model that is measured, and what the caller calls it.

    ``encoder`` is what becomes of the columns of deployed silos' tables.
    """

    name: str
    arch: str
    state: State
    encoder: Encoder | None = None


def serve_evaluation(grid: Grid, flower_context: Context) -> None:
    """Measure the models that a run config names, and send the figures by the run's log.

    Raises:
        FedKDError: a model cannot be read, or too few silos are there.
    """
    log = RunLog()
    config = {key: str(value) for key, value in flower_context.run_config.items()}
    try:
        context = read_context(config)
        models = [_read_model(context, each) for each in json.loads(config[keys.CONFIG_MODELS])]
        run_id = f"{flower_context.run_id % 2**64:016x}"
        log.on_evaluation(measure(grid, context, models, observer=log, run_id=run_id))
    except FedKDError as error:
        log.on_error(str(error))
        raise


def measure(
    grid: Grid,
    context: RunContext,
    models: list[NamedModel],
    *,
    observer: Observer,
    run_id: str,
) -> Evaluation:
    """Let every silo, and the server if it has test examples, measure models.

    Raises:
        FedKDError: fewer silos than the quorum are there.
    """
    session = Session(grid, context, observer, run_id, context.rounds.timeout)
    gather(session)
    refused = session.ledger.quarantined
    unmeasured = [Unmeasured(None, entry.silo, entry.reason) for entry in refused]
    rows: list[Measured] = []
    most, classes = context.rounds.max_examples, context.shape.num_classes

    def read(_: Member, content: RecordDict) -> tuple[Metrics, int]:
        return read_reply(content, num_classes=classes, max_examples=most)

    for index, model in enumerate(models):
        own = context if model.encoder is None else encode_tables(context, model.encoder)
        before = len(refused)
        question = write_question(index, ArrayRecord(model.state), model.arch)
        asked = replace(session, context=own).ask(session.members, question, read)
        for member, (metrics, size) in asked:
            rows.append(_row(model, member.name, metrics, size))
        unmeasured += [Unmeasured(model.name, e.silo, e.reason) for e in refused[before:]]
        rows += _measure_here(own, model)
    return Evaluation(tuple(rows), tuple(unmeasured))


def _measure_here(context: RunContext, model: NamedModel) -> list[Measured]:
    """Measure a model on the server's test examples; an empty list where it has none."""
    if context.test is None:
        return []
    built = build_model(model.arch, context.shape.merged, seed=0).to(context.compute.device)
    built.load_state_dict(model.state)
    with intra_op_threads(context.study.engine.server_threads):
        metrics = evaluate(built, context.test, compute=context.compute)
    return [_row(model, None, metrics, len(context.test))]


def _row(model: NamedModel, silo: str | None, metrics: Metrics, size: int) -> Measured:
    loss = metrics.loss if math.isfinite(metrics.loss) else None
    return Measured(model.name, silo, metrics.accuracy, loss, metrics.macro_f1, size)


def _read_model(context: RunContext, given: dict[str, Any]) -> NamedModel:
    """Read a model by its path on this host, or by the run that left it here."""
    study, name = context.study, str(given["name"])
    if "path" in given:
        path = Path(given["path"])
    else:
        of, run, arm = (str(given[key]) for key in ("study", "run", "arm"))
        path = state_folder(of, run, arm, int(given["seed"]))
    archs = [context.arch, *study.architectures]
    found, encoder, shape = find_given(path, what=name), None, context.shape.merged
    if study.is_table and study.is_deployed:
        card = read_card(found.path, what=name)
        if card is None or not card.columns:
            raise UserError(
                f"{name}: {found.path} does not say how the columns of a table become inputs; give "
                "the final model of a run, whose file does"
            )
        encoder = Encoder.from_json(card.columns)
        shape = Shape.of(shape.num_classes, "table", [len(encoder.names)])
    arch, model = read_given(found, archs, shape, context.classes, what=name)
    return NamedModel(name, arch, model.state, encoder)
