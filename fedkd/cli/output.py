"""Output where not every character can be written: a file or terminal that is not UTF-8."""

from __future__ import annotations

import codecs
import io
import sys

_PLAIN = {"\N{GREATER-THAN OR EQUAL TO}": ">=", "\N{LESS-THAN OR EQUAL TO}": "<="}
"""Characters of fedkd's own tables, and what replaces them where the encoding lacks them."""


def replace_what_cannot_be_written() -> None:
    """Let standard output and error replace characters that their encoding lacks.

    A table with a question mark in it is better than an error at the end of a study.
    """
    codecs.register_error("fedkd", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="fedkd")


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in missing), error.end
