"""The header of a safetensors file, checked before any tensor is loaded.

A safetensors file begins with the length of its header (eight bytes, little-endian) and the header
itself, JSON that gives for each tensor where its data begin and end.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8
_NEVER_UNPICKLES = (
    "fedkd never unpickles a file of this name; if torch.save wrote it, let its name end in .pt"
)


def find_checkpoint_problem(path: Path) -> str | None:
    """Return what is wrong with a checkpoint as one sentence, or None if it may be loaded.

    Reads the header alone, so it costs the same for large models as for small ones.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return f"{path} is not a file" + (" but a folder" if path.is_dir() else "")
        with path.open("rb") as file:
            start = file.read(_LENGTH_BYTES + 1)
            length = int.from_bytes(start[:_LENGTH_BYTES], "little")
            problem = _find_foreign_format(path, start, length)
            if problem is None and path.suffix != ".safetensors":
                problem = f"{path} must be a safetensors file whose name ends in .safetensors"
            if problem is None and _LENGTH_BYTES + length > status.st_size:
                problem = f"{path} is truncated: it ends inside its header"
            if problem is not None:
                return problem
            file.seek(_LENGTH_BYTES)
            header = file.read(length)
    except FileNotFoundError:
        return f"there is no file {path}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"{path} cannot be read: {reason}"
    return _find_size_problem(path, header, status.st_size)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the header's metadata; empty if it has none.

    The file must be one in which :func:`find_checkpoint_problem` finds nothing wrong.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        found = json.loads(file.read(min(length, MAX_HEADER_BYTES))).get("__metadata__")
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _find_foreign_format(path: Path, start: bytes, length: int) -> str | None:
    """Return the format of a file that is not safetensors, if it is a common one.

    The byte after the length decides first: a length may well begin with the bytes of a pickle.
    """
    if start[_LENGTH_BYTES:] == b"{" and length <= MAX_HEADER_BYTES:
        return None
    if start.startswith(b"PK"):
        return f"{path} is a zip archive, as torch.save writes it; {_NEVER_UNPICKLES}"
    if start.startswith(b"\x80"):
        return f"{path} is a pickle; {_NEVER_UNPICKLES}"
    if len(start) <= _LENGTH_BYTES:
        return f"{path} is truncated: it has only {len(start)} bytes"
    if path.suffix != ".safetensors":
        return f"{path} must be a safetensors file whose name ends in .safetensors"
    return f"{path} is not a safetensors file: it does not begin with a header"


def _find_size_problem(path: Path, header: bytes, size: int) -> str | None:
    """Compare the file's size with the end of data that the header gives."""
    try:
        end = _end_of_data(json.loads(header))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{path} is damaged: its header is not that of a safetensors file"
    if end is None:
        return f"{path} holds no tensors"
    expected = _LENGTH_BYTES + len(header) + end
    if size < expected:
        return f"{path} is truncated: it has {size} bytes but its header describes {expected}"
    if size > expected:
        return f"{path} is damaged: it has {size} bytes but its header describes only {expected}"
    return None


def _end_of_data(header: dict[str, Any]) -> int | None:
    """Return the greatest end of data, None without tensors; raise if it is no header."""
    ends = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if type(begin) is not int or type(end) is not int or not 0 <= begin <= end:
            raise ValueError(name)
        ends.append(end)
    return max(ends, default=None)
