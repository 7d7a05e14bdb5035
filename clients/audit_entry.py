"""The audit log's entry for a reply: what it contains, its size and its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, Message

from fedkd.messages import keys


def describe_reply(message: Message, reply: Message) -> dict[str, Any]:
    """Return the audit log's entry for a reply: what it holds, its size and its hash."""
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


def _config(message: Message) -> Mapping[str, Any]:
    return message.content.config_records.get(keys.CONFIG) or {}
