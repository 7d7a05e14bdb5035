"""The section on the columns of a table."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.config.sections import Section

ColumnName = Annotated[str, Field(min_length=1, max_length=1000)]


class Table(Section):
    """Which columns of a table are what, and how they become numbers."""

    label: ColumnName | None = Field(
        None, description="column of the classes; sources with a name of their own have a default"
    )
    silo: ColumnName | None = Field(
        None,
        description="column that says which silo a row is of; for partition.scheme: by-column. It "
        "is not an input of models",
    )
    drop: list[ColumnName] = Field(default=[], description="columns that are not used")
    categorical: list[ColumnName] = Field(
        default=[], description="columns of numbers that are names, such as codes; text always is"
    )
    statistics: Literal["silos", "transfer"] = Field(
        "silos",
        description="what means, deviations and categories are computed from: sums that silos "
        "share, charged as an exchange to every arm, or the transfer set",
    )
