"""Pydantic's validation errors as sentences about the user's own keys and values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedkd.errors import UserError
from fedkd.suggestions import suggest

MAX_LINES = 20
_MAX_SHOWN = 60
_DISCRIMINATOR = "scheme"
"""The key that selects a member of a union for pydantic; only partitions have one."""
_PLAIN_KEY = re.compile(r"[\w.:-]+")
_PATTERNS = {
    "device": "is not cpu, cuda or cuda:N",
    "engine.name": (
        "is not a valid engine name: use letters, digits, '.', '_' and '-', at most 64"
    ),
}
_BAD_NAME = (
    "is not a valid name: use lower-case letters, digits and hyphens, at most 64, "
    "beginning with a letter or digit"
)


@dataclass(frozen=True)
class Problem:
    """One fault of a study, and the dotted path of its key."""

    path: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.path}: {self.sentence}" if self.path else self.sentence


def to_user_error(error: ValidationError, data: Mapping[str, Any], *, origin: str) -> UserError:
    """Return what pydantic refused about ``data`` as an error of one line a problem."""
    return join_problems(explain(error, data), origin=origin)


def join_problems(problems: Iterable[Problem], *, origin: str = "") -> UserError:
    """Return an error of one line a problem, each beginning with ``origin`` if there is one."""
    lines = [f"{origin}: {problem}" if origin else str(problem) for problem in problems]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES:] = [f"and {len(lines) - MAX_LINES} more problems"]
    return UserError("\n".join(lines))


def explain(error: ValidationError, data: Mapping[str, Any]) -> list[Problem]:
    """Return the problems in the order of the file, one for each path."""
    by_path: dict[str, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        by_path.setdefault(_dotted(_user_path(details, data)), []).append(details)
    return [Problem(path, _explain_path(path, errors)) for path, errors in by_path.items()]


def show(value: Any) -> str:
    """Return a value as its user would write it, on one line and not too long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to print integers of more than some thousand digits.
        return "a number of thousands of digits"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."


def _user_path(details: ErrorDetails, data: Mapping[str, Any]) -> list[str | int]:
    """Return pydantic's location without the names of union members.

    The scheme of a partition is such a name, even if the user has a key of that name.
    """
    path: list[str | int] = []
    here: Any = data
    for part in details["loc"]:
        is_key = isinstance(here, Mapping) and part in here and here.get("scheme") != part
        is_index = isinstance(here, list) and isinstance(part, int) and part < len(here)
        if is_key or is_index:
            here = here[part]
            path.append(part)
    kind = details["type"]
    if kind == "missing":
        path.append(details["loc"][-1])
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        path.append(_DISCRIMINATOR)
    elif kind in ("unknown_key", "not_a_switch"):
        path.append(details["ctx"]["key"])
    return path


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(
        part if isinstance(part, str) and _PLAIN_KEY.fullmatch(part) else show(part)
        for part in path
    )


def _explain_path(path: str, errors: list[ErrorDetails]) -> str:
    """Return one sentence for all errors at one path.

    A union reports one error for each member. That a number is out of range says more than that
    it is not one of the names; otherwise the sentence has both.
    """
    names = [details for details in errors if details["type"] == "literal_error"]
    others = [details for details in errors if details["type"] != "literal_error"]
    if names and others:
        if others[0]["type"] not in _EXPECTED:
            return _explain(path, others[0])
        other = _EXPECTED[others[0]["type"]]
        expected = " nor ".join([*_quoted(names[0]["ctx"]["expected"]), other])
        return f"{show(errors[0]['input'])} is neither {expected}"
    return _explain(path, errors[0])


def _explain(path: str, details: ErrorDetails) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "literal_error":
        return _explain_name(value, context["expected"])
    if kind == "union_tag_invalid":
        return _explain_name(value.get(_DISCRIMINATOR), context["expected_tags"])
    if kind in _SENTENCES:
        length = context.get("min_length" if kind == "too_short" else "max_length")
        entries = f"{length} {'entry' if length == 1 else 'entries'}"
        return _SENTENCES[kind].format(value=show(value), entries=entries, **context)
    if kind in _EXPECTED:
        return _explain_type(kind, value)
    if kind == "string_pattern_mismatch":
        for end, sentence in _PATTERNS.items():
            if path.endswith(end):
                return f"{show(value)} {sentence}"
        return f"{show(value)} {_BAD_NAME}"
    message = details["msg"].removeprefix("Value error, ")
    return " ".join(message.split())


def _explain_type(kind: str, value: Any) -> str:
    expected = _EXPECTED[kind]
    if value is None:
        return f"is empty, but {expected} is expected; give it a value or remove the key"
    if kind == "string_type" and not isinstance(value, Mapping | list):
        return f"{show(value)} is not text; put it in quotes if it is meant as such"
    if kind.endswith("_type") and isinstance(value, Mapping | list):
        return f"is {show(value)}, but {expected} is expected"
    return f"{show(value)} is not {expected}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _explain_name(value: Any, valid: str) -> str:
    names = _quoted(valid)
    hint = suggest(value, names) if isinstance(value, str) else ""
    if len(names) == 1:
        return f"{show(value)} is not {names[0]}, the only valid value{hint}"
    return f"{show(value)} is not one of {', '.join(names)}{hint}"


_SENTENCES = {
    "missing": "is missing",
    "union_tag_not_found": "is missing",
    "unknown_key": "unknown key{hint}",
    "less_than_equal": "{value} is more than {le:.12g}",
    "less_than": "{value} is not less than {lt:.12g}",
    "greater_than_equal": "{value} is less than {ge:.12g}",
    "greater_than": "{value} is not more than {gt:.12g}",
    "finite_number": "{value} is not a finite number",
    "int_parsing_size": "{value} is too large a number",
    "invalid-json-value": "{value} is not text, a number, true or false, a list or a mapping",
    "too_short": "needs at least {entries} but has {actual_length}",
    "too_long": "has more than {entries}, which is the most",
}
"""Pydantic's kinds of error that are not about a wrong type or name, each with its sentence."""

_TYPES = {
    "a whole number": "int_type int_parsing int_from_float",
    "a number": "float_type float_parsing",
    "true or false": "bool_type bool_parsing",
    "text": "string_type",
    "a list": "list_type tuple_type",
    "a mapping of keys to values": "dict_type dataclass_type model_type model_attributes_type",
}
_EXPECTED = {kind: expected for expected, kinds in _TYPES.items() for kind in kinds.split()}
"""Pydantic's kinds of error about a wrong type, each with what was expected."""
