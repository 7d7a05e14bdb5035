"""``query.sums``: silos share sums over the columns of their tables.

From these the server computes how columns become inputs of models; every later question carries
it. Values of few rows are left out of a silo's reply, and names of categories of few rows too.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fedkd.data.columns import Column, Encoder, TableSums
from fedkd.messages import keys
from fedkd.messages.envelope import Question, read_config, read_info
from fedkd.messages.validate import RefusedError, printable, read_num_examples, read_text

MAX_TEXT = 8 << 20
MAX_COLUMNS = 10_000
"""Of a table as models get it: each category that is named counts as one."""
MAX_NAME = 1000
_MAX_SUM = 1e60
"""Of a column, also of the squares of its values, which may be 1e18 each."""
_ROUNDING = 1e-6


def write_question() -> Question:
    """Ask for the sums."""
    return Question(keys.TABLE_SUMS, 0)


def write_reply(columns: tuple[Column, ...], sums: TableSums, *, least: int) -> RecordDict:
    """Write a silo's answer.

    Args:
        columns: of its table.
        sums: over its rows.
        least: fewest rows of a category that is named, and of a column that is summed.
    """
    told: list[dict[str, Any]] = []
    for index, column in enumerate(columns):
        told_of = float(sums.present[index] >= least)  # a sum of few values tells these
        entry: dict[str, Any] = {"name": column.name, "present": told_of * sums.present[index]}
        if column.categories is None:
            entry["sum"] = told_of * sums.sums[index]
            entry["square"] = told_of * sums.squares[index]
        else:
            pairs = zip(column.categories, sums.counts[index].tolist(), strict=True)
            entry["counts"] = {name: count for name, count in pairs if count >= least}
        told.append(entry)
    info = ConfigRecord({keys.NUM_EXAMPLES: sums.rows, keys.COLUMNS: json.dumps(told)})
    return RecordDict({keys.INFO: info})


def read_reply(content: RecordDict, *, max_examples: int) -> tuple[tuple[Column, ...], TableSums]:
    """Return the columns of a silo's table, with the categories that it names, and its sums.

    Raises:
        RefusedError: they are not valid.
    """
    info = read_info(content)
    rows = read_num_examples(info, max_examples)
    text = info.get(keys.COLUMNS)
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise RefusedError("its reply has no sums of columns")
    try:
        told = json.loads(text)
        columns = tuple(_read_column(entry) for entry in told)
        number = sum(1 + len(column.categories or ()) for column in columns)
        if not 1 <= number <= MAX_COLUMNS:
            raise ValueError(f"there are {number} columns and categories")
        if len({column.name for column in columns}) < len(columns):
            raise ValueError("a column is named twice")
        return columns, _read_sums(rows, told)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RefusedError(f"its sums of columns are not valid: {printable(str(error))}") from error


def _read_column(entry: Any) -> Column:
    name, counts = read_text(entry, "name"), entry.get("counts")
    if not isinstance(counts, dict | None):
        raise TypeError("counts are not by category")
    names = [name, *(counts or ())]
    if max(map(len, names)) > MAX_NAME:
        raise ValueError(f"a name has more than {MAX_NAME} characters")
    "".join(names).encode()  # half of a surrogate pair is refused: it cannot be written
    return Column(name, None if counts is None else tuple(sorted(counts)))


def _read_sums(rows: int, told: list[Any]) -> TableSums:
    counts = [[entry["counts"][n] for n in sorted(entry.get("counts", {}))] for entry in told]
    present = [entry["present"] for entry in told]
    sums = [[entry.get(key, 0) for entry in told] for key in ("sum", "square")]
    for number in [*present, *(count for each in counts for count in each)]:
        if not 0 <= number <= rows:
            raise ValueError(f"a count of {number} of {rows} rows")
    if not all(abs(value) <= _MAX_SUM for each in sums for value in each):  # NaN is not either
        raise ValueError("a sum is not finite, or too large")
    for rows_there, total, squares_there, each in zip(present, *sums, counts, strict=True):
        if total**2 > rows_there * squares_there * (1 + _ROUNDING) or sum(each) > rows_there:
            raise ValueError("a column's sums contradict each other")
    there, values, squares = (np.array(each, dtype=np.float64) for each in (present, *sums))
    by_category = tuple(np.array(each, dtype=np.float64) for each in counts)
    return TableSums(rows, there, values, squares, by_category)


def read_encoder(content: RecordDict, columns: tuple[Column, ...]) -> Encoder | None:
    """Return what a question says of columns, at the silo; None where it says nothing.

    Args:
        content: of the question.
        columns: of the silo's table.

    Raises:
        ValueError: it is not for such a table.
    """
    text = read_config(content).get(keys.COLUMNS)
    if text is None:
        return None
    encoder = Encoder.from_json(str(text)[:MAX_TEXT])
    kinds = {column.name: column.categories is None for column in encoder.columns}
    if kinds != {column.name: column.categories is None for column in columns}:
        raise ValueError("the columns that were sent are not those of the table")
    return encoder
