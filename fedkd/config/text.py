"""The section on texts: where they stand in a file, and how they become token ids."""

from __future__ import annotations

from pydantic import Field

from fedkd.config.sections import Section
from fedkd.config.table import ColumnName


class Text(Section):
    """Which columns of a file are texts and labels, and the tokenizer."""

    tokenizer: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="folder with a tokenizer.json of Hugging Face; by default that of "
        "model.arch: hf:FOLDER",
    )
    max_length: int = Field(
        128,
        ge=4,
        le=8192,
        description="tokens of an example: a longer text is cut, a shorter one is padded",
    )
    column: ColumnName = Field("text", description="column, or key of JSON lines, of the texts")
    label: ColumnName = Field("label", description="column, or key of JSON lines, of the classes")
