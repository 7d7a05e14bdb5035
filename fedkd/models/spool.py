"""Models that are in memory only while they are read: all of a round, and the large global one."""

from __future__ import annotations

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
from safetensors.torch import load_file

from fedkd.models.state import State, write_tensors

MEMORY_BYTES = max(256 << 20, psutil.virtual_memory().total // 32)
"""Most bytes of models that wait in memory; further ones wait on disk."""
LARGE_BYTES = 256 << 20
"""A model of more bytes waits on disk, however much memory there is."""


class StateFile:
    """A state in a file, which is removed with this object.

    Args:
        folder: of the file, which ``remove_unfinished`` removes there after a kill.
        state: is written.
    """

    def __init__(self, folder: Path, state: State) -> None:
        self._keys = list(state)
        self._path = folder / f".model-{os.urandom(6).hex()}.part"
        weakref.finalize(self, self._path.unlink, missing_ok=True)
        write_tensors(self._path, state)

    def read(self) -> State:
        """Return the state, bit for bit.

        It is mapped: what is not read takes no memory, and all of it is freed with its tensors.
        """
        loaded = load_file(self._path)
        return {key: loaded[key] for key in self._keys}


def is_large(state: State) -> bool:
    """Whether a model is to be in memory as seldom as possible."""
    return state_bytes(state) > LARGE_BYTES


def state_bytes(state: State) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


class StateSpool(Sequence[State]):
    """Keeps states by name, and gives them one after another, bit for bit.

    Those for which there is no memory are in files until the block of ``with`` ends.

    Args:
        folder: for the files; None for a temporary one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._given = folder
        self._stack = contextlib.ExitStack()
        self._states: dict[str, State | StateFile] = {}
        self._names: list[str] = []
        self._bytes = 0

    def __enter__(self) -> StateSpool:
        """Return itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Remove all states."""
        self._states.clear()
        self._names.clear()
        self._stack.close()

    def put(self, name: str, state: State) -> None:
        """Add a state at the end."""
        size = state_bytes(state)
        if size <= LARGE_BYTES and self._bytes + size <= MEMORY_BYTES:
            self._bytes += size
            self._states[name] = state
        else:
            self._states[name] = StateFile(self._folder(), state)
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
        return state.read() if isinstance(state, StateFile) else state

    def _folder(self) -> Path:
        if self._given is None:
            self._given = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        return self._given
