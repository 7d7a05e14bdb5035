"""Columns and categories of several tables, in one order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from fedkd.data.columns import Column, TableSums
from fedkd.data.images import Images
from fedkd.errors import UserError

_UNKNOWN = -1
"""Code of a category that the table of reference has nowhere: all its columns are zeros."""


def align(rows: Images, columns: Sequence[Column], wanted: Sequence[Column]) -> Images:
    """Return rows of a table with their columns and categories in the order of another table.

    Rows are float64 ``[N, F]``, as they were read.
    """
    if tuple(columns) == tuple(wanted):
        return rows
    place = {column.name: index for index, column in enumerate(columns)}
    values = rows.images.numpy()
    parts = []
    for column in wanted:
        index = place[column.name]
        own, held = values[:, index], columns[index].categories
        if column.categories is not None and held is not None:
            known = {name: code for code, name in enumerate(column.categories)}
            codes = [known.get(name, _UNKNOWN) for name in held]
            renamed = np.array([*codes, np.nan])
            own = renamed[np.where(np.isnan(own), len(held), own).astype(np.int64)]
        parts.append(own)
    return dataclasses.replace(rows, stored=torch.from_numpy(np.stack(parts, axis=1)), rows=None)


def align_sums(sums: TableSums, columns: Sequence[Column], wanted: Sequence[Column]) -> TableSums:
    """Return sums with columns and categories in the order of :func:`unite_columns`."""
    place = {column.name: index for index, column in enumerate(columns)}
    order = [place[column.name] for column in wanted]
    counts = []
    for column, index in zip(wanted, order, strict=True):
        own = dict(zip(columns[index].categories or (), sums.counts[index], strict=True))
        counts.append(np.array([own.get(name, 0.0) for name in column.categories or ()]))
    parts = (sums.present[order], sums.sums[order], sums.squares[order])
    return TableSums(sums.rows, *parts, tuple(counts))


def unite_columns(tables: Sequence[tuple[str, Sequence[Column]]]) -> tuple[Column, ...]:
    """Return the columns of several tables, with the categories of all.

    Raises:
        UserError: their columns differ, or one is of numbers here and of names there.
    """
    first_name, first = tables[0]
    for name, columns in tables[1:]:
        for one, other, lacks in ((first, columns, name), (columns, first, first_name)):
            names = {column.name for column in other}
            if absent := [column.name for column in one if column.name not in names]:
                raise UserError(
                    f"the columns of {first_name} and {name} differ: {lacks} lacks {absent[0]!r}; "
                    "leave it out by data.table.drop, or add it"
                )
    united = []
    for column in first:
        others = [each for _, columns in tables for each in columns if each.name == column.name]
        if len({each.categories is None for each in others}) > 1:
            raise UserError(
                f"column {column.name!r} holds numbers in one table and text in another; name it "
                "in data.table.categorical, or correct it"
            )
        if column.categories is not None:
            all_names = {name for each in others for name in each.categories or ()}
            column = Column(column.name, tuple(sorted(all_names)))
        united.append(column)
    return tuple(united)
