"""The models of a round, of which few are in memory at a time, however many silos there are."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from fedkd.models.state import State, write_tensors

MEMORY_BYTES = max(256 << 20, psutil.virtual_memory().total // 32)
"""Most bytes of models that wait in memory; further ones wait on disk."""


class StateSpool(Sequence[State]):
    """Keeps states by name, and gives them one after another, bit for bit.

    A state that lies on disk is mapped where it is taken: what is not read takes no memory, and
    what is no longer referred to is freed. All of them are gone when the block of ``with`` ends.

    Args:
        folder: for files, which ``remove_unfinished`` removes there after a kill; None for a
            temporary one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._stack = contextlib.ExitStack()
        self._states: dict[str, State | Path] = {}
        self._keys: dict[str, list[str]] = {}
        self._names: list[str] = []
        self._bytes = 0

    def __enter__(self) -> StateSpool:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Remove all states."""
        self._stack.close()
        self._states.clear()
        self._names.clear()

    def put(self, name: str, state: State) -> None:
        """Add a state at the end."""
        size = sum(tensor.nbytes for tensor in state.values())
        if self._bytes + size <= MEMORY_BYTES:
            self._bytes += size
            self._states[name] = state
        else:
            self._states[name], self._keys[name] = self._write(state), list(state)
        self._names.append(name)

    def order(self, names: Sequence[str]) -> None:
        """Give the states of these names, in this order, from now on."""
        self._names = list(names)

    def __len__(self) -> int:
        """Return the number of states."""
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        """Return a state, or a list of several."""
        names = self._names[index]
        return self._read(names) if isinstance(names, str) else list(map(self._read, names))

    def __iter__(self) -> Iterator[State]:
        """Yield the states, each read when it is its turn."""
        return map(self._read, self._names)

    def _read(self, name: str) -> State:
        state = self._states[name]
        if isinstance(state, dict):
            return state
        loaded = load_file(state)
        return {key: loaded[key] for key in self._keys[name]}

    def _write(self, state: State) -> Path:
        if self._given is None:
            self._given = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        path = self._given / f".model-{os.urandom(6).hex()}.part"
        self._stack.callback(path.unlink, missing_ok=True)
        write_tensors(path, {key: tensor.contiguous() for key, tensor in state.items()})
        return path
