"""Data sources that are tables: rows as they were read, before columns are standardized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from fedkd.config.table import Table
from fedkd.data.columns import Column
from fedkd.data.frames import MAX_CATEGORIES, as_names, read_frame
from fedkd.data.images import Images
from fedkd.data.source import MAX_VALUE, Source
from fedkd.errors import UserError


def read_table(name: str, table: Table | None = None, *, unlabelled: bool = False) -> Source:
    """Read a table as a data source, float64 ``[N, F]``; missing values are NaN.

    If ``unlabelled``, the label's column may be missing, and all labels are -1.

    Raises:
        UserError: see :func:`fedkd.data.frames.read_frame`; or a column has values beyond
            ``MAX_VALUE`` or too many categories.
    """
    frame = read_frame(name, table, unlabelled=unlabelled)
    columns, values = [], np.empty((len(frame.inputs), len(frame.inputs.columns)))
    for index, (key, series) in enumerate(frame.inputs.items()):
        name_of = str(key)
        is_text = name_of in frame.categorical
        column, values[:, index] = _read_column(name_of, series, as_text=is_text)
        columns.append(column)
    rows = Images(torch.from_numpy(values), torch.from_numpy(frame.labels))
    return Source(name, rows, None, frame.classes, columns=tuple(columns), silo_of=frame.silos)


def _read_column(
    name: str, series: pd.Series[Any], *, as_text: bool
) -> tuple[Column, np.ndarray[Any, np.dtype[np.float64]]]:
    if not as_text:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        if (largest := np.nanmax(np.abs(values), initial=0.0)) > MAX_VALUE:
            raise UserError(
                f"column {name!r} has values as large as {largest:g}; replace or drop those beyond "
                f"{MAX_VALUE:g}"
            )
        return Column(name), values
    names = as_names(series)
    categories = sorted(names.dropna().unique())
    if len(categories) > MAX_CATEGORIES:
        raise UserError(
            f"column {name!r} has {len(categories)} different names, more than {MAX_CATEGORIES}; "
            "leave it out by data.table.drop, or group them"
        )
    codes = pd.Categorical(names, categories=categories).codes.astype(np.float64)
    return Column(name, tuple(categories)), np.where(codes < 0, np.nan, codes)
