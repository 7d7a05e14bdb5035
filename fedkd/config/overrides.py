"""Values that the command line sets in a study: ``--set rounds.max=10``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedkd.errors import UserError
from fedkd.util.error_messages import show
from fedkd.util.yaml_loader import MAX_DEPTH, load_yaml


def parse_override(override: str, example: str = "rounds.max=10") -> tuple[list[str], Any]:
    """Return the path and the value of ``--set PATH=VALUE``.

    Raises:
        UserError: it is not of this form; ``example`` is one.
    """
    origin = f"--set {override}"
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"{origin}: write it as path=value, such as {example}")
    if len(keys) > MAX_DEPTH:
        raise UserError(f"{origin}: the path has more than {MAX_DEPTH} parts")
    return keys, load_yaml(text, origin=origin)


def replace_value(
    data: Any, keys: Sequence[str], value: Any, *, origin: str, done: str = ""
) -> Any:
    """Return ``data`` with the value at a path replaced.

    Copies what it passes through, as an anchor may stand behind several keys of the file and only
    the named one is meant.
    """
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    here = f"{done}.{key}" if done else key
    if data is None:
        data = {}
    if isinstance(data, Mapping):
        return {**data, key: replace_value(data.get(key), rest, value, origin=origin, done=here)}
    if not isinstance(data, list):
        raise UserError(f"{origin}: {done} is {show(data)}, which has no keys of its own")
    if not key.isdecimal() or len(key) > len(str(len(data))) or int(key) >= len(data):
        last = f"{done}.0 to {done}.{len(data) - 1}" if data else "it is empty"
        raise UserError(f"{origin}: {done} is a list without entry {key!r}; {last}")
    index = int(key)
    entry = replace_value(data[index], rest, value, origin=origin, done=here)
    return [*data[:index], entry, *data[index + 1 :]]
