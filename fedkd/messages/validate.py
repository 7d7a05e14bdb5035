"""Checks of what a silo's reply holds: nothing in it is trusted before it was checked.

A reply that fails is refused with a reason; the global model then is as if that silo had not
been asked. Sizes are read from headers before anything is decoded.
"""

from __future__ import annotations

import io
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedkd.messages import keys
from fedkd.messages.arrays import PARSING
from fedkd.models.state import State

MAX_EXAMPLES = 10**9
MAX_LOGIT = 1e4
MAX_VALUE = 1e18
"""Greatest magnitude of a weight: the square of a greater one overflows in single precision."""
MAX_HEADER = 10_000
MAX_REASON = 300
"""Characters of the longest reason for a refusal."""
UNREADABLE = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError),
    *(RuntimeError, MemoryError, BufferError, EOFError, SyntaxError),
)
"""What malformed values may raise where they are read.

Not NameError, ImportError, AssertionError or OSError: these are faults of this program or of the
machine, whatever the values are.
"""


class RefusedError(Exception):
    """A reply is not used; the message is the reason: one short, printable phrase."""

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason, MAX_REASON) or "it gave no reason")


def printable(value: object, most: int = 200) -> str:
    """Return a value of a reply as one short line that is safe to print."""
    try:
        text = value[: 10 * most] if isinstance(value, str) else reprlib.repr(value)
    except UNREADABLE:  # such as an integer of more digits than Python prints
        text = f"a value of type {type(value).__name__} that cannot be printed"
    text = "".join(char if char.isprintable() else " " for char in text).strip()
    return text if len(text) <= most else f"{text[: most - 3]}..."


def read_text(record: Mapping[str, Any], key: str) -> str:
    """Return a text that is not empty."""
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise RefusedError(f"{key} is {printable(value)} where text is expected")
    return value


def read_num_examples(record: Mapping[str, Any] | None, most: int) -> int:
    """Return a positive number of examples, at most ``most``: it is the silo's weight."""
    value = None if record is None else record.get(keys.NUM_EXAMPLES)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise RefusedError(
            f"{keys.NUM_EXAMPLES} is {printable(value)} where 1 to {most} is expected"
        )
    return value


def read_state(record: ArrayRecord | None, like: State) -> State:
    """Decode a model that must have exactly the keys, shapes and types of ``like``."""
    if record is None:
        raise RefusedError("its reply has no model")
    if set(record) != set(like):
        odd = sorted(set(record) ^ set(like))[0]
        raise RefusedError(f"its model has not the expected tensors, {printable(odd)!r} for one")
    return {key: _read_weights(record[key], key, tensor) for key, tensor in like.items()}


def _read_weights(array: Array, key: str, like: Tensor) -> Tensor:
    """Decode one tensor of a model, whose values must be plausible, or those of ``like``.

    Some models have constant masks of -inf, or of the least number, among their buffers.
    """
    finite = like.is_complex() or not like.is_floating_point()
    values = read_array(array, key, tuple(like.shape), like.dtype, finite=finite)
    if values.dtype is torch.bool or values.is_complex() or not values.numel():
        return values
    # NumPy takes one thread: PyTorch would wait for the cores on which silos train.
    numbers = values.numpy()
    if float(numbers.min()) >= -MAX_VALUE and float(numbers.max()) <= MAX_VALUE:
        return values
    beyond = ~(values.double().abs() <= MAX_VALUE)  # infinity of 16 bits, else, were within it
    unchanged = (values == like) | (values.isnan() & like.isnan())
    if bool((beyond & ~unchanged).any()):
        what = "not finite" if not bool(torch.isfinite(values).all()) else f"beyond {MAX_VALUE:g}"
        raise RefusedError(f"{printable(key)!r} has values that are {what}")
    return values


def read_array(
    array: Array, key: str, shape: tuple[int, ...], dtype: torch.dtype, *, finite: bool = True
) -> Tensor:
    """Decode one array after its header has been compared with what is expected."""
    key = printable(key)
    expected = torch.empty(0, dtype=dtype).numpy().dtype
    sent_shape, fortran, sent_dtype, offset = _read_header(array, key)
    if sent_dtype != expected:
        raise RefusedError(f"{key!r} is {printable(str(sent_dtype))} where {expected} is expected")
    if sent_shape != shape:
        raise RefusedError(
            f"{key!r} is {printable(list(sent_shape))} where {list(shape)} is expected"
        )
    size = int(np.prod(shape, dtype=np.int64)) * expected.itemsize
    if len(array.data) - offset != size:
        raise RefusedError(f"{key!r} has {len(array.data) - offset} bytes where {size} are due")
    # The header has been checked, so that the numbers need not be read through a stream.
    flat = np.frombuffer(array.data, expected, offset=offset)
    values = np.array(flat.reshape(shape, order="F" if fortran else "C"), order="C")
    if finite and not bool(np.isfinite(values).all()):
        raise RefusedError(f"{key!r} has values that are not finite")
    return torch.from_numpy(values)


def _read_header(array: Array, key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read shape, whether columns come first, type, and the header's length.

    The fields of ``array`` itself may lie.
    """
    if array.stype != "numpy.ndarray":
        raise RefusedError(f"{key!r} is encoded as {printable(array.stype)}")
    stream = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        with PARSING:
            shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER)
    except Exception as error:  # NumPy's parser may raise TokenError, MemoryError and many more
        raise RefusedError(f"{key!r} has no readable header") from error
    return shape, fortran, dtype, stream.tell()
