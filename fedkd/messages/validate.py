"""The gate: a silo's reply is untrusted and passes only when everything about it is as asked.

A reply that fails is refused with a reason; the global model then is as if that silo had not
been asked. Sizes are read from headers before anything is decoded.
"""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message
from torch import Tensor

from fedkd.messages import keys
from fedkd.models.state import State, is_finite
from fedkd.util.names import SILO_NAME

MAX_EXAMPLES = 10**9
MAX_LOGIT = 1e4
MAX_HEADER = 10_000


class RefusedError(Exception):
    """A reply did not pass; the message says why, in a phrase."""


def read_info(message: Message, *, run_id: str, round_number: int) -> ConfigRecord:
    """Return the reply's ``info`` once it is known to answer this round of this run."""
    if message.has_error():
        reason = str(message.error.reason or "no reason given").strip().splitlines()
        raise RefusedError(f"it failed: {_printable(reason[-1] if reason else 'unknown')}")
    info = message.content.config_records.get(keys.INFO) if message.has_content() else None
    if info is None:
        raise RefusedError(f"its reply has no record {keys.INFO!r}")
    if info.get(keys.RUN_ID) != run_id:
        raise RefusedError("its reply belongs to another run")
    if info.get(keys.ROUND) != round_number:
        raise RefusedError(f"its reply belongs to round {_printable(info.get(keys.ROUND))}")
    if keys.PROBLEM in info:
        raise RefusedError(_printable(info[keys.PROBLEM]))
    return info


def read_name(info: ConfigRecord) -> str:
    """Return the silo's name."""
    name = info.get(keys.SILO)
    if not isinstance(name, str) or not SILO_NAME.fullmatch(name):
        raise RefusedError(f"{_printable(name)!r} is no name for a silo")
    return name


def read_num_examples(record: Any, most: int) -> int:
    """Return a positive number of examples, at most ``most``: it is the silo's weight."""
    value = None if record is None else record.get(keys.NUM_EXAMPLES)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
        raise RefusedError(
            f"{keys.NUM_EXAMPLES} is {_printable(value)} where 1 to {most} is expected"
        )
    return value


def read_class_counts(info: ConfigRecord, num_classes: int) -> tuple[int, ...]:
    """Return the silo's images of each class, or nothing where it keeps them to itself."""
    counts = info.get(keys.CLASS_COUNTS)
    if counts is None or counts == []:
        return ()
    if not isinstance(counts, list) or len(counts) != num_classes:
        raise RefusedError(f"{keys.CLASS_COUNTS} is no list of {num_classes} numbers")
    whole = [n for n in counts if isinstance(n, int) and not isinstance(n, bool)]
    if len(whole) < len(counts) or not all(0 <= n <= MAX_EXAMPLES for n in whole):
        raise RefusedError(f"{keys.CLASS_COUNTS} holds what is no number of images")
    return tuple(whole)


def read_state(record: ArrayRecord | None, like: State) -> State:
    """Decode a model that must have exactly the keys, shapes and types of ``like``."""
    if record is None:
        raise RefusedError("its reply has no model")
    if set(record) != set(like):
        odd = sorted(set(record) ^ set(like))[0]
        raise RefusedError(f"its model has not the expected tensors, {_printable(odd)!r} for one")
    return {
        key: read_array(record[key], key, tuple(tensor.shape), tensor.dtype, like=tensor)
        for key, tensor in like.items()
    }


def read_update(
    reply: Message, like: State, *, silo: str, run_id: str, round_number: int, max_examples: int
) -> tuple[State, int, float]:
    """Return a trained model, its number of examples, and its loss: 0 where that is not finite."""
    info = read_info(reply, run_id=run_id, round_number=round_number)
    if info.get(keys.SILO) != silo:
        raise RefusedError("its reply bears another silo's name")
    record = reply.content.metric_records.get(keys.METRICS)
    size = read_num_examples(record, max_examples)
    loss = record.get(keys.LOSS) if record is not None else None
    state = read_state(reply.content.array_records.get(keys.ARRAYS), like)
    return state, size, loss if isinstance(loss, float) and math.isfinite(loss) else 0.0


def read_logits(record: ArrayRecord | None, samples: int, classes: int) -> Tensor:
    """Decode logits ``[N, C]`` of plausible magnitude."""
    if record is None or set(record) != {keys.LOGITS}:
        raise RefusedError("its reply has no logits")
    logits = read_array(record[keys.LOGITS], keys.LOGITS, (samples, classes), torch.float32)
    if float(logits.abs().max()) > MAX_LOGIT:
        raise RefusedError(f"it sent logits beyond {MAX_LOGIT:g}")
    return logits


def read_density(record: ArrayRecord, shape: tuple[int, ...], bound: float) -> Tensor:
    """Decode log-densities and refuse those above what an honest silo can claim."""
    if set(record) != {keys.LOG_DENSITY}:
        raise RefusedError("its reply has no log-densities")
    density = read_array(record[keys.LOG_DENSITY], keys.LOG_DENSITY, shape, torch.float32).double()
    total = density.logsumexp(1) if len(shape) == 2 else density
    # Rounding to fp32 may lift an honest value by a few parts in ten million.
    if float(total.max()) > bound + 1e-5 * max(1.0, abs(bound)):
        raise RefusedError("it claims densities that no data can have")
    return total if len(shape) == 1 else density


def read_array(
    array: Array, key: str, shape: tuple[int, ...], dtype: torch.dtype, like: Tensor | None = None
) -> Tensor:
    """Decode one array after its header has been compared with what is expected.

    Its numbers must be finite, but where ``like`` has the same that are not.
    """
    expected = torch.empty(0, dtype=dtype).numpy().dtype
    found_shape, fortran, found_dtype, offset = _read_header(array, key)
    if found_dtype != expected:
        raise RefusedError(f"{key!r} is {found_dtype} where {expected} is expected")
    if found_shape != shape:
        raise RefusedError(f"{key!r} is {list(found_shape)} where {list(shape)} is expected")
    size = int(np.prod(shape, dtype=np.int64)) * expected.itemsize
    if len(array.data) - offset != size:
        raise RefusedError(f"{key!r} holds {len(array.data) - offset} bytes where {size} are due")
    # The header has been checked, so that the numbers need not be read through a stream.
    flat = np.frombuffer(array.data, expected, offset=offset)
    values = np.array(flat.reshape(shape, order="F" if fortran else "C"), order="C")
    decoded = torch.from_numpy(values)
    if not is_finite({key: decoded}, None if like is None else {key: like}):
        raise RefusedError(f"{key!r} has values that are not finite")
    return decoded


def _read_header(array: Array, key: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read shape, whether columns come first, type, and the header's length.

    The fields of ``array`` itself may lie.
    """
    if array.stype != "numpy.ndarray":
        raise RefusedError(f"{key!r} is encoded as {_printable(array.stype)}")
    stream = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(stream, max_header_size=MAX_HEADER)
    except Exception as error:  # NumPy's parser may raise TokenError, MemoryError and many more
        raise RefusedError(f"{key!r} has no readable header") from error
    return shape, fortran, dtype, stream.tell()


def _printable(value: object) -> str:
    """Make something a silo said safe to print: one short line."""
    text = "".join(char if char.isprintable() else " " for char in str(value))
    return text if len(text) <= 200 else f"{text[:200]}..."
