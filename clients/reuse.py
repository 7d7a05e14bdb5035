"""What a deployed silo's process keeps from one message to the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Latest(Generic[Value]):
    """The value that was computed last; it is used again while everything it depends on is equal.

    Only one is kept, because one process answers for one silo, mostly in one study.
    """

    def __init__(self) -> None:
        self._entry: tuple[Hashable, Value] | None = None

    def get(self, key: Hashable | None, compute: Callable[[], Value]) -> Value:
        """Return the kept value if its key is equal, else compute and keep one.

        Args:
            key: everything on which the value depends; None if that is not known.
            compute: computes it.
        """
        entry = self._entry  # read once: threads may replace it
        if key is not None and entry is not None and entry[0] == key:
            return entry[1]
        self._entry = None  # the old value need not be in memory beside the new one
        value = compute()
        if key is not None:
            self._entry = (key, value)
        return value
