"""Names that a study file may use, known without importing what they stand for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any


def suggest(name: str, valid: Iterator[str] | list[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest valid name, or an empty string."""
    near = get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


class Registry(Mapping[str, str]):
    """Maps a name to ``module:attribute``; ``load`` imports it only when it is used.

    Adding a method, a weighting or an architecture is one function in one file and one line in
    the registry of its package. The import is lazy so that reading a study needs no PyTorch.
    """

    def __init__(self, kind: str, entries: Mapping[str, str]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> str:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> str:
        """Return ``name`` or raise ValueError with the nearest valid one."""
        if name in self._entries:
            return name
        known = ", ".join(self._entries)
        raise ValueError(
            f"unknown {self.kind} {name!r}{suggest(name, list(self))}; known are {known}"
        )

    def load(self, name: str) -> Callable[..., Any]:
        """Import and return what ``name`` stands for."""
        module, _, attribute = self._entries[self.check(name)].partition(":")
        loaded: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return loaded
