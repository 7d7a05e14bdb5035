"""Names that a study file may use, known without importing what they stand for."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fedkd.errors import UserError

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def suggest(name: str, valid: Iterator[str] | list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest valid name, or an empty string."""
    near = get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Registry(Mapping[str, str]):
    """Maps a name to ``module:attribute``; ``load`` imports it only when it is used.

    Adding a method, a weighting or an architecture is one function in one file and one line in
    the registry of its package. The import is lazy so that reading a study needs no PyTorch.

    Args:
        kind: what the names stand for, for error messages.
        entries: name to ``module:attribute``.
        own: whether a user's own ``package.module:function`` may stand for a name.
    """

    def __init__(self, kind: str, entries: Mapping[str, str], *, own: bool = False) -> None:
        self.kind = kind
        self._entries = dict(entries)
        self._own = own

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> str:
        """Return ``name`` or raise ValueError with the nearest valid one."""
        if name in self._entries or (self._own and _OWN.fullmatch(name)):
            return name
        known = ", ".join([*self._entries, *(["package.module:function"] if self._own else [])])
        raise ValueError(
            f"unknown {self.kind} {name!r}{suggest(name, list(self))}; known are {known}"
        )

    def load(self, name: str) -> Callable[..., Any]:
        """Import and return what ``name`` stands for."""
        target = self._entries.get(self.check(name), name)
        module, _, attribute = target.partition(":")
        try:
            loaded = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            if name in self._entries:
                raise
            raise UserError(
                f"{self.kind} {name} cannot be imported: {error}; the module must be on "
                "PYTHONPATH or in the folder where fedkd is started"
            ) from error
        if not callable(loaded):
            raise UserError(f"{self.kind} {name} is no function")
        function: Callable[..., Any] = loaded
        return function

    def call(self, name: str, *args: Any) -> Any:
        """Call what ``name`` stands for.

        Raises:
            UserError: it is a function of the user's own and raised something.
        """
        function = self.load(name)
        if name in self._entries:
            return function(*args)
        try:
            return function(*args)
        except UserError:
            raise
        except Exception as error:
            *_, last = traceback.extract_tb(error.__traceback__)
            raise UserError(
                f"{self.kind} {name} raised {type(error).__name__}: {error} "
                f"({Path(last.filename).name}, line {last.lineno})"
            ) from error

    def fingerprint(self, name: str) -> str:
        """Return what a name stands for, for cache keys; an edit of a user's module changes it."""
        if name in self._entries:
            return name
        source = inspect.getsourcefile(inspect.unwrap(self.load(name)))
        text = Path(source).read_bytes() if source else b""
        return f"{name}@{hashlib.sha256(text).hexdigest()}"
