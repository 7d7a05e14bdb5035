"""``query.describe``: a silo introduces itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict
from torch import Tensor

from fedkd.data.images import content_hash
from fedkd.messages import keys
from fedkd.messages.envelope import Question, read_config, read_info, read_name
from fedkd.messages.validate import (
    MAX_EXAMPLES,
    RefusedError,
    printable,
    read_num_examples,
    read_text,
)

WAITING = "waits for its owner's approval of this study"
"""In the reason of a silo that has not been allowed to answer; the server asks it again."""


@dataclass(frozen=True)
class Description:
    """What is known of a silo.

    Attributes:
        arch: architecture of its own model.
        num_examples: examples that it has.
        class_counts: examples of each class, or empty where the silo withholds them.
        has_transfer: whether it has the transfer examples already.
        fixed_part: hash of the part of the models that nobody trains, or empty.
        receives: whether it asks for the final model.
        tokenizer: hash of a deployed silo's tokenizer of texts, or empty.
        holds_out: whether it has test examples to measure what it gets; None if it does not say so.
    """

    arch: str
    num_examples: int
    class_counts: tuple[int, ...] = ()
    has_transfer: bool = False
    fixed_part: str = ""
    receives: bool = False
    tokenizer: str = ""
    holds_out: bool | None = None


def write_question(transfer: Tensor | None) -> Question:
    """Ask who a silo is, and whether it has the transfer examples ``[N, ...]``."""
    wanted = keys.NO_HASH if transfer is None else content_hash(transfer)
    return Question(keys.DESCRIBE, 0, {keys.TRANSFER_HASH: wanted})


def read_transfer_hash(content: RecordDict) -> str | None:
    """Return the hash of the transfer examples that a question is about; None for no examples.

    It is of ``query.describe`` or ``query.teacher``.
    """
    value = read_config(content).get(keys.TRANSFER_HASH)
    return None if value in (None, keys.NO_HASH) else str(value)


def write_reply(
    description: Description, *, num_parameters: int, checkpoint_hash: str | None
) -> RecordDict:
    """Write a silo's answer.

    Args:
        description: of the silo.
        num_parameters: values in its own model; 0 for no model.
        checkpoint_hash: of its own model; None for no model.
    """
    info = ConfigRecord(
        {
            keys.ARCHITECTURE: description.arch,
            keys.NUM_EXAMPLES: description.num_examples,
            keys.CLASS_COUNTS: list(description.class_counts),
            keys.NUM_PARAMETERS: num_parameters,
            keys.CHECKPOINT_HASH: checkpoint_hash or keys.NO_HASH,
            keys.HOLDS_TRANSFER: description.has_transfer,
        }
    )
    if description.fixed_part:
        info[keys.FIXED_PART] = description.fixed_part
    if description.receives:
        info[keys.RECEIVES] = True
    if description.tokenizer:
        info[keys.TOKENIZER] = description.tokenizer
    if description.holds_out is not None:
        info[keys.HOLDS_OUT] = description.holds_out
    return RecordDict({keys.INFO: info})


def read_reply(
    content: RecordDict, *, num_classes: int, max_examples: int
) -> tuple[str, Description]:
    """Return a silo's name and description.

    Raises:
        RefusedError: one of them is not valid.
    """
    info = read_info(content)
    description = Description(
        arch=read_text(info, keys.ARCHITECTURE),
        num_examples=read_num_examples(info, max_examples),
        class_counts=_read_class_counts(info, num_classes),
        has_transfer=info.get(keys.HOLDS_TRANSFER) is True,
        fixed_part=printable(info.get(keys.FIXED_PART, "")),
        receives=info.get(keys.RECEIVES) is True,
        tokenizer=printable(info.get(keys.TOKENIZER, "")),
        holds_out=held if isinstance(held := info.get(keys.HOLDS_OUT), bool) else None,
    )
    return read_name(info), description


def _read_class_counts(info: Mapping[str, Any], num_classes: int) -> tuple[int, ...]:
    counts = info.get(keys.CLASS_COUNTS)
    if counts is None:
        return ()
    if not isinstance(counts, list) or len(counts) != num_classes:
        raise RefusedError(
            f"{keys.CLASS_COUNTS} is {printable(counts)} where {num_classes} numbers are expected"
        )
    if not all(type(n) is int and 0 <= n <= MAX_EXAMPLES for n in counts):
        raise RefusedError(f"{keys.CLASS_COUNTS} contains an invalid count: {printable(counts)}")
    return tuple(counts)


def withhold_class_counts(content: RecordDict, *, least: int, share: bool) -> None:
    """Take the class counts out of an answer unless all that are not 0 are shared and large enough.

    Args:
        content: the answer, which is changed.
        least: fewest examples of a class whose count may be sent.
        share: whether class counts are shared at all.
    """
    info = content.config_records.get(keys.INFO)
    counts = None if info is None else info.get(keys.CLASS_COUNTS)
    if info is None or not isinstance(counts, list):
        return
    if not share or any(0 < int(n) < least for n in counts):
        del info[keys.CLASS_COUNTS]
