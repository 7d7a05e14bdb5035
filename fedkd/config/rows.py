"""A researcher's own split: which rows of the data each silo holds, as a JSON file."""

from __future__ import annotations

import json
import os
import stat
from functools import lru_cache
from pathlib import Path

from fedkd.errors import UserError
from fedkd.util.names import SILO_NAME, natural_key

MAX_BYTES = 256 << 20
_MAX_SILOS = 100_000


def read_rows(path: str) -> dict[str, list[int]]:
    """Return the rows of each silo that a JSON file lists, in natural order of the silos' names.

    Raises:
        UserError: there is no such file, or it is not such a mapping, or a row is in it twice.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 -- Path drops what makes a name invalid
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a file")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than 256 MiB, too large for lists of row numbers")
        return _read(path, status.st_mtime_ns, status.st_size)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read: {reason}") from None


@lru_cache(maxsize=2)
def _read(path: str, *_: int) -> dict[str, list[int]]:
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict) or not content:
        raise UserError(
            f'{path} must map names of silos to lists of row numbers, such as {{"north": [0, 1]}}'
        )
    if len(content) > _MAX_SILOS:
        raise UserError(f"{path} names {len(content)} silos, more than {_MAX_SILOS}")
    owner: dict[int, str] = {}
    for silo, rows in content.items():
        if not SILO_NAME.fullmatch(silo):
            raise UserError(
                f"{path}: {silo[:80]!r} is not a valid name of a silo: letters, digits, dots, "
                "hyphens and underscores, at most 64"
            )
        if not isinstance(rows, list) or any(type(row) is not int or row < 0 for row in rows):
            raise UserError(f"{path}: {silo} must be a list of row numbers from 0")
        for row in rows:
            if row in owner:
                where = "twice" if owner[row] == silo else f"and so does {owner[row]}"
                raise UserError(
                    f"{path}: {silo} lists row {row} {where}; every row may be in one silo once"
                )
            owner[row] = silo
    return {silo: content[silo] for silo in sorted(content, key=natural_key)}
