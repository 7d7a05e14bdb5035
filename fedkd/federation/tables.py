"""Columns of a table become inputs of models, the same on every silo, after the data are split."""

from __future__ import annotations

import dataclasses
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from fedkd.config import Study
from fedkd.data.columns import Column, TableSums, fit_encoder, sums_of
from fedkd.errors import UserError
from fedkd.models.build import Shape

if TYPE_CHECKING:
    from fedkd.federation.split import Split


def encode_tables(split: Split, study: Study, columns: tuple[Column, ...]) -> Split:
    """Standardize a table by sums over the silos' rows, or by the transfer set's.

    Test and validation rows have no influence. In a simulation the sums are computed where the
    data are; :attr:`fedkd.config.Study.statistics_exchanges` charges them.

    Raises:
        UserError: there is no transfer set to take the statistics from, or all columns are
            constant.
    """
    table = study.data.table
    rows = list(split.silos)
    if table is not None and table.statistics == "transfer":
        if split.transfer is None:
            raise UserError(
                "data.table.statistics: transfer needs a transfer set on the server; use silos"
            )
        rows = [split.transfer]
    sums: TableSums = reduce(add, (sums_of(part, columns) for part in rows))
    encoder = fit_encoder(columns, sums)
    encode = encoder.encode
    return dataclasses.replace(
        split,
        test=encode(split.test),
        validation=encode(split.validation),
        transfer=None if split.transfer is None else encode(split.transfer),
        silos=tuple(encode(part) for part in split.silos),
        silo_tests=tuple(None if part is None else encode(part) for part in split.silo_tests),
        shape=Shape.of(split.num_classes, "table", [len(encoder.names)]),
        encoder=encoder,
    )
