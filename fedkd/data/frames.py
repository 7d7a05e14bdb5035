"""Tables as files hold them: which columns are inputs, the label and the silo.

Read with pandas, without PyTorch, since a study takes the names of its silos from a column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedkd.config.table import Table
from fedkd.data.public_tables import read_public_table
from fedkd.errors import UserError, one_line, raise_exhaustion
from fedkd.registry import SOURCES
from fedkd.util.names import SILO_NAME, natural_key
from fedkd.util.places import expand

MAX_LABELS = 1000
"""Classes beyond this number are taken for a column of other values."""
MAX_CATEGORIES = 1000
MAX_SILOS = 1000
_PLAIN = (str, bool, int, float, np.bool_, np.integer, np.floating)


@dataclass(frozen=True, eq=False)
class Frame:
    """A table and what its columns are.

    Attributes:
        inputs: columns that models take.
        labels: number of each row's class, int64 ``[N]``; -1 for all where there is no label.
        classes: names of the classes, in natural order.
        silos: name of each row's silo, or None without a column of silos.
        categorical: columns of ``inputs`` that are names.
    """

    inputs: pd.DataFrame
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    silos: npt.NDArray[np.object_] | None
    categorical: frozenset[str]


def read_frame(source: str, table: Table | None, *, unlabelled: bool = False) -> Frame:
    """Read the table of a data source.

    If ``unlabelled``, the label's column may be missing, as in a transfer set.

    Raises:
        UserError: the file cannot be read, a column is missing, the labels are constant or
            continuous, or there are too many silos.
    """
    whole, defaults = _read(source)
    table = Table() if table is None else table
    label = table.label or defaults.label
    silo = table.silo or defaults.silo
    if label is None and not unlabelled:
        raise UserError(
            "data.table.label: is missing; it names the column of the classes, one of "
            f"{_some(whole.columns)}"
        )
    named = [("silo", silo), *(("drop", each) for each in table.drop)]
    named += [("categorical", each) for each in table.categorical]
    for key, each in named:
        if each is not None and each not in whole and not unlabelled:
            raise UserError(f"data.table.{key}: {missing_column(each, whole)}")
    if label is not None and label in (silo, *table.drop):
        raise UserError(f"data.table.label: column {label!r} is named as silo or to be dropped too")
    if label in whole:
        labels, classes = read_labels(whole[label], "table")
    elif unlabelled:
        labels, classes = np.full(len(whole), -1), ()
    else:
        raise UserError(f"data.table.label: {missing_column(str(label), whole)}")
    left_out = {label, silo, *table.drop, *(set(defaults.drop) - {table.label})}
    plain = {name: _plain(whole[name], name) for name in whole.columns if name not in left_out}
    if not plain:
        raise UserError("it has no column that models can take, but those of label and silo")
    inputs = pd.DataFrame(plain, copy=False)
    silos = None
    if silo is not None and silo in whole:
        silos = _read_silos(_plain(whole[silo], silo), silo)
    as_text = {*table.categorical, *defaults.categorical} & set(plain)
    as_text |= {name for name, column in plain.items() if _is_text(column)}
    return Frame(inputs, labels, classes, silos, frozenset(as_text))


def read_silo_names(source: str, table: Table | None) -> list[str]:
    """Return the names of the silos of a table, in natural order.

    Raises:
        UserError: the table has no column of silos, or one of too many values.
    """
    silos = read_frame(source, table).silos
    if silos is None:
        raise UserError("data.table.silo: is missing; it names the column of the silos")
    return sorted(set(silos), key=natural_key)


def as_names(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column's values as text, 1.0 as 1; missing ones stay missing."""
    if pd.api.types.is_bool_dtype(column) or not pd.api.types.is_numeric_dtype(column):
        names = column.astype("string")
    else:
        whole = column.dropna()
        are_whole = bool((whole == whole.round()).all())
        names = column.astype("Int64" if are_whole else "float64").astype("string")
    return names.where(column.notna(), None)


def _read(source: str) -> tuple[pd.DataFrame, Table]:
    """Return a table, and what its columns are by default."""
    prefix, _ = SOURCES.split(source)
    if prefix is None or prefix.path is None:
        return read_public_table(source)
    return read_rows(source), Table()


def read_rows(source: str) -> pd.DataFrame:
    """Return all columns of a file: of ``csv:``, ``parquet:`` or ``text:``.

    Raises:
        UserError: there is none, it is damaged, or two columns have one name.
    """
    path = expand(SOURCES.split(source)[1])
    if not path.is_file():
        raise UserError(f"there is no file {path}; a relative path is seen from {Path.cwd()}")
    status = path.stat()
    return _read_file(source.partition(":")[0], path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=2)
def _read_file(form: str, path: Path, *_: int) -> pd.DataFrame:
    try:
        if form == "parquet":
            whole = pd.read_parquet(path)
        elif form == "text" and path.suffix.lower() in (".jsonl", ".json"):
            whole = pd.read_json(path, lines=True, dtype=False, convert_dates=False)
        elif form == "text":  # one may be NA: only an empty one is missing
            whole = pd.read_csv(path, low_memory=False, keep_default_na=False, na_values=[""])
        else:
            whole = pd.read_csv(path, low_memory=False)
    except ImportError:
        raise UserError(
            f"{path} needs a reader of Parquet; install it: pip install pyarrow"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8; save it in that encoding") from error
    except Exception as error:  # a damaged file raises all kinds
        raise_exhaustion(error)
        raise UserError(f"{path} cannot be read as {form.upper()}: {one_line(error)}") from error
    if not len(whole):
        raise UserError(f"{path} has no rows")
    whole.columns = [str(name) for name in whole.columns]
    if twice := whole.columns[whole.columns.duplicated()].tolist():
        raise UserError(f"{path} has two columns named {twice[0]!r}")
    return whole


def _plain(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Return a column as numbers, truth values or text."""
    if pd.api.types.is_object_dtype(column):
        types = {type(value) for value in column.dropna()}
        if types and types <= {Decimal, int, float}:
            return column.astype(np.float64)
        strange = [each.__name__ for each in types if not issubclass(each, _PLAIN)]
    else:
        is_plain = _is_text(column) or pd.api.types.is_numeric_dtype(column)
        is_plain = is_plain and not pd.api.types.is_complex_dtype(column)
        strange = [] if is_plain else [str(column.dtype)]
    if strange:
        raise UserError(
            f"column {name!r} has values of type {', '.join(sorted(strange))}; turn it into "
            "numbers or text, or leave it out by data.table.drop"
        )
    return column


def read_labels(
    column: pd.Series[Any], section: str
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return each row's class, int64 ``[N]``, and the classes' names; ``data.SECTION`` names it."""
    column, key = _plain(column, str(column.name)), f"data.{section}.label: column {column.name!r}"
    if missing := int(column.isna().sum()):
        raise UserError(f"{key} is empty in {missing} of {len(column)} rows; leave these rows out")
    if pd.api.types.is_float_dtype(column) and bool((column != column.round()).any()):
        raise UserError(
            f"{key} has fractions such as {column[column != column.round()].iloc[0]:g}, so it is "
            "continuous; classes are text or whole numbers"
        )
    names = as_names(column).astype(str)
    classes = sorted(names.unique(), key=natural_key)
    if len(classes) == 1:
        raise UserError(f"{key} is constant: all rows are {classes[0]!r}")
    if len(classes) > MAX_LABELS:
        raise UserError(
            f"{key} has {len(classes)} different values, more than the {MAX_LABELS} classes that "
            f"a {section} may have; name a column of classes"
        )
    codes = pd.Categorical(names, categories=classes).codes
    return codes.astype(np.int64), tuple(classes)


def _read_silos(column: pd.Series[Any], name: str) -> npt.NDArray[np.object_]:
    key = f"data.table.silo: column {name!r}"
    if missing := int(column.isna().sum()):
        raise UserError(f"{key} is empty in {missing} of {len(column)} rows; fill or drop these")
    values = as_names(column).astype(str)
    distinct = values.unique()
    if len(distinct) > MAX_SILOS:
        raise UserError(
            f"{key} has {len(distinct)} different values, more than {MAX_SILOS} silos; name a "
            "column of fewer"
        )
    names: dict[str, str] = {}
    for value in distinct:
        silo = re.sub(r"[^A-Za-z0-9._-]+", "-", value).strip("-._")[:64]
        if not SILO_NAME.fullmatch(silo):
            raise UserError(f"{key} has {value[:80]!r}, which has no letter or digit for a name")
        if silo in names.values():
            raise UserError(f"{key} has two values that are both named {silo!r} as silos")
        names[value] = silo
    return cast("npt.NDArray[np.object_]", values.map(names).to_numpy(dtype=object))


def _is_text(column: pd.Series[Any]) -> bool:
    types = pd.api.types
    return bool(
        types.is_bool_dtype(column)
        or types.is_string_dtype(column)
        or types.is_object_dtype(column)
        or isinstance(column.dtype, pd.CategoricalDtype)
    )


def missing_column(name: str, whole: pd.DataFrame) -> str:
    """Say that there is no column of a name."""
    only = whole.columns[0]
    if len(whole.columns) == 1 and (mark := next((m for m in ";\t|" if m in only), None)):
        return (
            f"there is only a column {only!r}; its fields seem to be separated by {mark!r}, not ','"
        )
    return f"there is no column {name!r}; there are {_some(whole.columns)}"


def _some(names: Any) -> str:
    shown = [str(name) for name in names]
    more = f" and {len(shown) - 20} more" if len(shown) > 20 else ""
    return ", ".join(shown[:20]) + more
