"""The guard of a silo in the field: nothing leaves that its file does not share, or unlogged.

It is a Flower mod around the whole ClientApp. What is asked is judged before anything is computed,
what is answered once more before it goes; and both end as a line in the silo's audit log first.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable

from fedkd.deploy.audit import append_entry
from fedkd.deploy.silo_file import Share, SiloFile, load_silo_file
from fedkd.errors import FedKDError
from fedkd.messages import keys

REFUSED = 2
"""Flower's error code for an exception in a ClientApp, the only one that is for apps."""

_logger = logging.getLogger("flwr")


class UnsharedError(FedKDError):
    """The silo does not do what it was asked; the message is for the server to read."""


def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Answer as the silo's file allows; simulated nodes, which have no file, pass."""
    if keys.NODE_SILO not in context.node_config:
        return call_next(message, context)
    try:
        file = load_silo_file(Path(str(context.node_config[keys.NODE_SILO])))
    except FedKDError as error:
        return _fail(message, error)
    try:
        check_question(file.share, message)
        reply = _answer(file, message, context, call_next)
        if not reply.has_error():
            keep_back(file.share, message, reply.content)
    except UnsharedError as error:
        reply = Message(Error(REFUSED, str(error)), reply_to=message)
    except Exception as error:  # its text may quote private data or paths: it stays in this log
        reply = _fail(message, error)
    try:
        append_entry(Path(file.audit), describe_reply(message, reply))
    except FedKDError as error:
        return _fail(message, error)
    return reply


def check_question(share: Share, message: Message) -> None:
    """Judge what is asked.

    Raises:
        UnsharedError: it is not shared.
    """
    kind, config = message.metadata.message_type, _config(message)
    if kind == keys.TEACHER:
        mode, density = config.get(keys.MODE), config.get(keys.DENSITY)
        allowed = {"weights": ("weights", "logits"), "logits": ("logits",), "none": ()}
        if mode != keys.MODE_NONE and mode not in allowed[share.teacher]:
            raise UnsharedError(
                f"it does not share the {mode} of its model (share.teacher is {share.teacher})"
            )
        if density == keys.DENSITY_MOMENTS:
            if not share.moments:
                raise UnsharedError("it does not share moments of its images (share.moments)")
        elif density != keys.DENSITY_NONE and not share.densities:
            raise UnsharedError("it does not share densities (share.densities)")
    elif kind == keys.DISTIL and (share.teacher != "weights" or not share.rounds):
        raise UnsharedError("it does not share a model that learnt on its images (share.teacher)")
    elif kind == keys.TRAIN and not share.rounds:
        raise UnsharedError("it takes no part in rounds (share.rounds)")
    elif kind == keys.EVALUATE and not share.metrics:
        raise UnsharedError("it does not share how good a model is on its images (share.metrics)")


def keep_back(share: Share, message: Message, content: RecordDict) -> None:
    """Take out of a reply what is shared only on demand, and refuse what was never asked for.

    Raises:
        UnsharedError: the reply holds arrays that do not belong into it.
    """
    kind, config = message.metadata.message_type, _config(message)
    expected: set[str] = set()
    if kind == keys.TEACHER and config.get(keys.MODE) != keys.MODE_NONE:
        expected.add(keys.TEACHER_RECORD)
    if kind == keys.TEACHER and config.get(keys.DENSITY) != keys.DENSITY_NONE:
        expected.add(keys.FAMILIARITY)
    if kind in (keys.TRAIN, keys.DISTIL):
        expected.add(keys.ARRAYS)
    teacher = content.array_records.get(keys.TEACHER_RECORD)
    predictions = config.get(keys.MODE) == keys.MODE_LOGITS
    if set(content.array_records) - expected or (
        predictions and teacher is not None and set(teacher) != {keys.LOGITS}
    ):
        raise UnsharedError("its reply would have held more than was asked for")
    told = content.array_records.get(keys.FAMILIARITY)
    moments = config.get(keys.DENSITY) == keys.DENSITY_MOMENTS
    if told is not None and moments != (keys.LOG_DENSITY not in told):
        raise UnsharedError("its reply would have told of its images what was not asked for")
    if told is not None and moments:
        of_class = told[keys.MOMENT_COUNTS].numpy()
        if bool(((of_class > 0) & (of_class < share.min_samples)).any()):
            raise UnsharedError("it has moments of fewer images of a class than share.min_samples")
    info = content.config_records.get(keys.INFO)
    counts = info.get(keys.CLASS_COUNTS) if info is not None else None
    if info is not None and isinstance(counts, list):
        few = any(0 < int(n) < share.min_samples for n in counts)
        if few or not share.class_counts:
            del info[keys.CLASS_COUNTS]
    metrics = content.metric_records.get(keys.METRICS)
    if metrics is not None and not share.metrics and keys.LOSS in metrics:
        del metrics[keys.LOSS]


def describe_reply(message: Message, reply: Message) -> dict[str, Any]:
    """Return what the audit log says of a reply: what it holds, how large it is, its hash."""
    config = _config(message)
    entry: dict[str, Any] = {
        "run": str(message.metadata.run_id),
        "round": config.get(keys.ROUND),
        "type": message.metadata.message_type,
    }
    if reply.has_error():
        reason = str(reply.error.reason)
        return {**entry, "refused": reason, "bytes": len(reason.encode()), "sent": {}}
    digest = hashlib.sha256()
    sent: dict[str, Any] = {}
    total = 0
    for name, record in reply.content.items():
        total += record.count_bytes()
        arrays = reply.content.array_records.get(name)
        for key, value in record.items():
            digest.update(f"{name}\0{key}\0".encode())
            digest.update(value.data if isinstance(value, Array) else repr(value).encode())
        sent[name] = (
            {"arrays": len(arrays), "values": sum(int(np.prod(a.shape)) for a in arrays.values())}
            if arrays is not None
            else dict(record)
        )
    return {**entry, "sent": sent, "bytes": total, "sha256": digest.hexdigest()}


def _answer(
    file: SiloFile, message: Message, context: Context, call_next: ClientAppCallable
) -> Message:
    if file.local_dp is None or message.metadata.message_type != keys.TRAIN:
        return call_next(message, context)
    model = message.content.array_records[keys.ARRAYS]
    if whole := [key for key, array in model.items() if not array.dtype.startswith("float")]:
        # Flower's mod would fail at them in the middle of its work.
        raise UnsharedError(f"its local_dp cannot add noise to whole numbers, as {whole[0]!r} is")
    dp = file.local_dp
    noisy = LocalDpMod(dp.clipping_norm, dp.sensitivity, dp.epsilon, dp.delta)
    return noisy(message, context, call_next)


def _fail(message: Message, error: Exception) -> Message:
    """Say no more than that it failed; the silo's own log has the rest."""
    _logger.error("the silo cannot answer: %s", error, exc_info=error)
    reason = "it is not ready; its own log says why, and so does `fedkd silo check` there"
    return Message(Error(REFUSED, reason), reply_to=message)


def _config(message: Message) -> Mapping[str, Any]:
    return message.content.config_records.get(keys.CONFIG) or {}
