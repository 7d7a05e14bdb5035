"""The audit log's entry for a reply: for which study it is, what it contains, size and hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from flwr.app import Array, Context, Message

from fedkd.deploy.bundle_hash import bundle_hash
from fedkd.errors import UserError
from fedkd.messages import keys
from fedkd.util.yaml_loader import load_yaml

MAX_NAME, MAX_REASON = 200, 1000


_noted: ContextVar[dict[str, str] | None] = ContextVar("noted", default=None)


@contextmanager
def noting_facts() -> Iterator[dict[str, str]]:
    """Yield what :func:`note_fact` notes in the block, for the entry of one message."""
    facts: dict[str, str] = {}
    token = _noted.set(facts)
    try:
        yield facts
    finally:
        _noted.reset(token)


def note_fact(key: str, value: str) -> None:
    """Note something for the entry of the message that is being answered."""
    facts = _noted.get()
    if facts is not None:
        facts[key] = value


def describe_run(context: Context) -> dict[str, Any]:
    """Return the part of an entry that says for which study, arm and code a message is.

    The study's name is the server's claim; its text may be invalid.
    """
    config = context.run_config
    text = str(config.get(keys.CONFIG_STUDY, ""))
    return {
        "study": study_name(text),
        "study-hash": hashlib.sha256(text.encode()).hexdigest(),
        "arm": str(config.get(keys.CONFIG_ARM, ""))[:MAX_NAME],
        "seed": _whole(config.get(keys.CONFIG_SEED)),
        "code": bundle_hash(),
    }


def study_name(text: str) -> str | None:
    """Return the name in a study's text, JSON or YAML; None if it cannot be read."""
    try:
        try:
            name = json.loads(text)["name"]
        except ValueError:
            name = load_yaml(text, origin="study")["name"]
    except (UserError, KeyError, TypeError, RecursionError):
        return None
    return name[:MAX_NAME] if isinstance(name, str) else None


def describe_reply(message: Message, reply: Message) -> dict[str, Any]:
    """Return the part of an entry that says what a reply contains, its size and its hash."""
    config = _config(message)
    entry: dict[str, Any] = {
        "run": str(message.metadata.run_id),
        "round": _whole(config.get(keys.ROUND)),
        "type": message.metadata.message_type,
        "transfer": _transfer_hash(config),
    }
    if reply.has_error():
        reason = str(reply.error.reason)
        size = len(reason.encode())  # it may quote texts of any length
        return {**entry, "refused": reason[:MAX_REASON], "bytes": size, "sent": {}}
    info = reply.content.config_records.get(keys.INFO)
    entry["transfer"] = entry["transfer"] or _transfer_hash(info or {})
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


def _whole(value: object) -> int | None:
    return value if type(value) is int else None


def _transfer_hash(record: Mapping[str, Any]) -> str | None:
    value = record.get(keys.TRANSFER_HASH)
    return value[:MAX_NAME] if isinstance(value, str) and value != keys.NO_HASH else None
