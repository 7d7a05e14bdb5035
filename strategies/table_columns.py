"""Before a run on tables of deployed silos: what columns become, from sums that silos share."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import reduce
from operator import add

from flwr.app import RecordDict
from flwr.serverapp import Grid

from fedkd.data.alignment import align, align_sums, unite_columns
from fedkd.data.columns import Column, Encoder, TableSums, fit_encoder
from fedkd.data.columns import sums_of as sums_of_rows
from fedkd.data.images import Images
from fedkd.errors import FedKDError, UserError
from fedkd.messages import table_sums
from fedkd.messages.validate import RefusedError
from fedkd.models.build import Shape
from fedkd.results.observer import Observer
from strategies.context import RunContext
from strategies.exchange import Ledger
from strategies.introductions import gather
from strategies.roster import Member
from strategies.session import Session


def learn_columns(
    grid: Grid, context: RunContext, observer: Observer, run_id: str
) -> tuple[RunContext, Ledger]:
    """Return the context with the server's rows as models get them, and what the exchange cost.

    Every later question of the run tells silos the same. The exchange is charged by
    :attr:`fedkd.config.Study.statistics_exchanges`, its bytes at the start.

    Raises:
        FedKDError: too few silos share their sums, or their columns differ.
    """
    table = context.study.data.table
    tables: list[tuple[str, tuple[Column, ...], TableSums]] = []
    ledger = Ledger()
    if table is not None and table.statistics == "transfer":
        if context.transfer is None:
            raise FedKDError("data.table.statistics: transfer needs data.transfer.source")
        sums = sums_of_rows(context.transfer, context.columns)
        tables.append(("the transfer set", context.columns, sums))
    else:
        tables, ledger = _ask(grid, context, observer, run_id)
    own = [("the server's table", context.columns)] if context.columns else []
    columns = unite_columns([*((name, each) for name, each, _ in tables), *own])
    aligned = [align_sums(sums, each, columns) for _, each, sums in tables]
    return encode_tables(context, fit_encoder(columns, reduce(add, aligned))), ledger


def encode_tables(context: RunContext, encoder: Encoder) -> RunContext:
    """Return the context with the server's rows as models get them.

    Raises:
        UserError: the server's table has not the columns that the encoder is of.
    """
    own = [("the server's table", context.columns)] if context.columns else []
    unite_columns([("the model", encoder.columns), *own])

    def encode(rows: Images | None) -> Images | None:
        if rows is None or not context.columns:
            return rows
        return encoder.encode(align(rows, context.columns, encoder.columns))

    return replace(
        context,
        shape=Shape.of(context.shape.num_classes, "table", [len(encoder.names)]),
        test=encode(context.test),
        validation=encode(context.validation) or context.validation,
        transfer=encode(context.transfer),
        encoder=encoder.to_json(),
    )


def _ask(
    grid: Grid, context: RunContext, observer: Observer, run_id: str
) -> tuple[list[tuple[str, tuple[Column, ...], TableSums]], Ledger]:
    session = Session(grid, context, observer, run_id, context.rounds.timeout)
    gather(session)
    introduced = len(session.ledger.quarantined)  # silos introduce themselves to the run again
    most = context.rounds.max_examples

    def read(_: Member, content: RecordDict) -> tuple[tuple[Column, ...], TableSums]:
        columns, sums = table_sums.read_reply(content, max_examples=most)
        if context.columns:
            try:
                unite_columns([("the server's table", context.columns), ("its table", columns)])
            except UserError as error:
                raise RefusedError(str(error)) from error
        return columns, sums

    with session.ledger.traffic.timed():
        answers = session.ask(session.members, table_sums.write_question(), read)
    least = max(1, math.ceil(context.rounds.quorum * context.study.num_silos))
    if len(answers) < least:
        reasons = "; ".join(sorted({f"{e.silo}: {e.reason}" for e in session.ledger.quarantined}))
        raise FedKDError(
            f"{len(answers)} of {context.study.num_silos} silos share sums of their columns, and "
            f"at least {least} are needed (rounds.quorum): {reasons}"
        )
    del session.ledger.quarantined[:introduced]
    return [(member.name, *answer) for member, answer in answers], session.ledger
