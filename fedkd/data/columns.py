"""From a table's columns to inputs of models, by sums over training rows that silos may share.

A number is standardized; where it is missing it is the mean, and another column says so. A name
becomes one column for each category that training rows have; any other category is zeros.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedkd.data.images import Images
from fedkd.errors import UserError

Floats = npt.NDArray[np.float64]

_AT_ONCE = 1 << 16
_UNREADABLE = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)
_LEAST_VARIANCE = 1e-12
"""Of a column's mean square: a smaller variance is rounding, and the column constant."""


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers, or the positions of names in ``categories``.

    Attributes:
        categories: all names that the column's files have, sorted; None for numbers.
    """

    name: str
    categories: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TableSums:
    """Sums over some rows of a table with F columns.

    Attributes:
        rows: number of rows.
        present: number of rows with a value in each column, float64 ``[F]``.
        sums: of the values, ``[F]``; 0 for names.
        squares: of their squares, ``[F]``; 0 for names.
        counts: for each column, rows of each category; empty for numbers.
    """

    rows: int
    present: Floats
    sums: Floats
    squares: Floats
    counts: tuple[Floats, ...]

    def __add__(self, other: TableSums) -> TableSums:
        """Return the sums over the rows of both."""
        counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        return TableSums(
            self.rows + other.rows,
            self.present + other.present,
            self.sums + other.sums,
            self.squares + other.squares,
            tuple(counts),
        )


def sums_of(rows: Images, columns: Sequence[Column]) -> TableSums:
    """Return the sums over rows of a table as it was read, float64 ``[N, F]``."""
    present, sums, squares = (np.zeros(len(columns)) for _ in range(3))
    counts = [np.zeros(len(column.categories or ())) for column in columns]
    are_numbers = np.array([column.categories is None for column in columns])
    for block in rows.blocks(_AT_ONCE):
        values = block.numpy()
        there = ~np.isnan(values)
        present += there.sum(0)
        numbers = np.where(there & are_numbers, values, 0.0)
        sums += numbers.sum(0)
        squares += (numbers**2).sum(0)
        for index in np.flatnonzero(~are_numbers):
            codes = values[there[:, index], index].astype(np.int64)
            counts[index] += np.bincount(codes[codes >= 0], minlength=len(counts[index]))
    return TableSums(len(rows), present, sums, squares, tuple(counts))


@dataclass(frozen=True)
class Encoder:
    """What is done to each column, from sums over training rows.

    Attributes:
        columns: of the table.
        means: of each column of numbers, float64 ``[F]``.
        deviations: standard deviations, ``[F]``; 0 for names and for a constant column.
        kept: for each column of names the positions of the categories that training rows have.
        missing: share of the training rows without a value in each column, ``[F]``.
    """

    columns: tuple[Column, ...]
    means: Floats
    deviations: Floats
    kept: tuple[tuple[int, ...], ...]
    missing: Floats

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns that models get."""
        names: list[str] = []
        for index, column in enumerate(self.columns):
            if column.categories is not None:
                names += [f"{column.name}={column.categories[k]}" for k in self.kept[index]]
            elif self.deviations[index]:
                names.append(column.name)
            if self.missing[index]:
                names.append(f"{column.name} missing")
        return tuple(names)

    def moved_since(self, before: Encoder) -> list[str]:
        """Return the numbers of an equal table that ``before`` standardizes noticeably otherwise.

        Noticeable is a tenth of a standard deviation, in the mean or in the deviation itself.
        """
        given = zip(before.means, before.deviations, strict=True)
        own = zip(self.means, self.deviations, strict=True)
        return [
            column.name
            for column, (mean, deviation), old in zip(self.columns, own, given, strict=True)
            if max(abs(mean - old[0]), abs(deviation - old[1])) > deviation / 10
        ]

    def encode(self, rows: Images) -> Images:
        """Return rows of the table, as they were read, as models get them, float32 ``[N, D]``."""
        encoded = torch.empty(len(rows), len(self.names))
        start = 0
        for block in rows.blocks(_AT_ONCE):
            encoded[start : start + len(block)] = torch.from_numpy(self._encode(block.numpy()))
            start += len(block)
        return Images(encoded, rows.labels)

    def _encode(self, values: Floats) -> npt.NDArray[np.float32]:
        absent = np.isnan(values)
        parts: list[npt.NDArray[np.float32]] = []
        for index, column in enumerate(self.columns):
            own = values[:, index]
            if column.categories is not None:
                parts += [(own == k).astype(np.float32) for k in self.kept[index]]
            elif self.deviations[index]:
                scaled = (own - self.means[index]) / self.deviations[index]
                parts.append(np.where(absent[:, index], 0.0, scaled).astype(np.float32))
            if self.missing[index]:
                parts.append(absent[:, index].astype(np.float32))
        return np.stack(parts, axis=1)

    def decode(self, encoded: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        """Return rows as models get them, ``[N, D]``, by column as the table had them.

        A value that is missing, or a name that training rows lack, is NaN. Numbers are rounded to
        the digits that float32 keeps.
        """
        table: dict[str, npt.NDArray[Any]] = {}
        parts = iter(encoded.astype(np.float64).T)
        for index, column in enumerate(self.columns):
            if column.categories is not None:
                known = [column.categories[k] for k in self.kept[index]]
                names = np.array([*known, np.nan], object)
                own = [next(parts) > 0.5 for _ in known]
                values = names[np.argmax([*own, np.ones(len(encoded))], axis=0)]
            elif self.deviations[index]:
                mean, deviation = self.means[index], self.deviations[index]
                values = _round(mean + deviation * next(parts), max(abs(mean), deviation))
            else:
                values = np.full(len(encoded), self.means[index])
            if self.missing[index]:
                values[next(parts) > 0.5] = np.nan
            table[column.name] = values
        return table

    def to_json(self) -> str:
        """Return the encoder as text, from which :meth:`from_json` makes an equal one."""
        arrays = {key: getattr(self, key).tolist() for key in ("means", "deviations", "missing")}
        columns = [[column.name, column.categories] for column in self.columns]
        return json.dumps({"columns": columns, "kept": self.kept, **arrays})

    @classmethod
    def from_json(cls, text: str) -> Encoder:
        """Return the encoder of a text of :meth:`to_json`, which may come from elsewhere.

        Raises:
            ValueError: it is not valid.
        """
        try:
            given = json.loads(text)
            columns = [Column(name, names and tuple(names)) for name, names in given["columns"]]
            arrays = [np.array(given[key]) for key in ("means", "deviations", "missing")]
            fits = all(isinstance(column.name, str) for column in columns)
            fits &= all(each.shape == (len(columns),) for each in arrays)
            fits &= all(bool(np.isfinite(each).all()) for each in arrays)
            kept = tuple(map(tuple, given["kept"]))
            for positions, column in zip(kept, columns, strict=True):
                fits &= all(k in range(len(column.categories or ())) for k in positions)
            if not fits:
                raise ValueError
        except _UNREADABLE as error:
            raise ValueError("it does not say how columns become inputs of models") from error
        means, deviations, missing = arrays
        return cls(tuple(columns), means, deviations, kept, missing)

    def describe(self) -> list[tuple[str, str, str]]:
        """Return what is done to each column: its name, what it holds, what models get."""
        lines = []
        for index, column in enumerate(self.columns):
            empty = f", {self.missing[index]:.1%} missing" if self.missing[index] else ""
            and_indicator = " and a column for missing" if self.missing[index] else ""
            if column.categories is not None:
                kept = len(self.kept[index])
                unseen = len(column.categories) - kept
                holds = f"{len(column.categories)} categories{empty}"
                given = f"{kept} columns of 0 and 1"
                given += f", {unseen} categories not in training are zeros" if unseen else ""
            else:
                mean, deviation = self.means[index], self.deviations[index]
                holds = f"numbers{empty}"
                given = f"(value - {mean:.4g}) / {deviation:.4g}"
                if not deviation:
                    given = "left out, as it is constant"
                elif self.missing[index]:
                    given += ", the mean where missing"
            lines.append((column.name, holds, given + and_indicator))
        return lines


def _round(values: Floats, scale: float) -> Floats:
    """Round to six digits of the larger of a value and of ``scale``."""
    powers: Floats = 10.0 ** (5 - np.floor(np.log10(np.maximum(np.abs(values), scale))))
    return np.round(values * powers) / powers


def fit_encoder(columns: Sequence[Column], sums: TableSums) -> Encoder:
    """Return what is done to each column, from sums over all training rows.

    Raises:
        UserError: no column has two different values there.
    """
    present = np.maximum(sums.present, 1)
    means = sums.sums / present
    squares = sums.squares / present
    variances = squares - means**2
    constant = variances <= _LEAST_VARIANCE * squares
    encoder = Encoder(
        tuple(columns),
        means,
        np.where(constant, 0.0, np.sqrt(np.maximum(variances, 0.0))),
        tuple(tuple(np.flatnonzero(count).tolist()) for count in sums.counts),
        1 - sums.present / max(1, sums.rows),
    )
    if not encoder.names:
        raise UserError("no column of the table has two different values in the training rows")
    return encoder
