"""Decoding Flower's arrays where several threads do so at once, as simulated silos.

NumPy parses the header of an array by ``ast.literal_eval``. CPython 3.11 counts the depth of that
parser for the whole process, not for each thread (python/cpython#106905): two threads that parse at
once may fail with "SystemError: AST constructor recursion depth mismatch".
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord

from fedkd.models.state import State

PARSING = threading.Lock()
"""Held while NumPy parses a header."""


def decode(array: Array) -> np.ndarray[Any, Any]:
    """Return the values of an array."""
    with PARSING:
        return array.numpy()


def decode_state(record: ArrayRecord, *, consumed: bool = False) -> State:
    """Return a record as a state dict; if ``consumed``, the record is empty afterwards."""
    state = {}
    for name in list(record):
        state[name] = torch.from_numpy(decode(record[name]))
        if consumed:
            del record[name]
    return state
