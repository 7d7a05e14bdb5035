"""Shortages of disk, memory, open files and threads, described in a phrase."""

from __future__ import annotations

from fedkd.errors import describe_exhaustion
from fedkd.util.files import DISK_ERRORS


def describe_shortage(error: BaseException) -> str | None:
    """Return what the machine lacked and what to do, or None if the error is another.

    Errors behind the error are looked at too: libraries wrap them.
    """
    behind: BaseException | None = error
    while behind is not None:
        if (phrase := _describe(behind)) is not None:
            return phrase
        behind = behind.__cause__ or behind.__context__
    return None


def _describe(error: BaseException) -> str | None:
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"{error.filename or 'the disk'}: {error.strerror}"
    return describe_exhaustion(error)
