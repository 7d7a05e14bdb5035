"""What every message carries: a question's run and round, which its reply echoes with its silo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedkd.messages import keys
from fedkd.messages.validate import RefusedError, printable, read_text
from fedkd.util.names import SILO_NAME


@dataclass(frozen=True)
class Question:
    """A message of the server before it has a receiver.

    Attributes:
        kind: its message type.
        round: its round; 0 before the first.
        config: numbers, texts and lists of these, by key.
        records: arrays, by name of their record.
        transfer_hash: of the examples that a reply must be about; None where it is about none.
    """

    kind: str
    round: int
    config: Mapping[str, Any] = field(default_factory=dict)
    records: Mapping[str, ArrayRecord] = field(default_factory=dict)
    transfer_hash: str | None = None

    def content(self, run_id: str, *, has_transfer: bool = False) -> RecordDict:
        """Return the content of the message.

        Args:
            run_id: what the reply must echo.
            has_transfer: whether the receiver has the transfer examples, which then are not sent.
        """
        config = {keys.RUN_ID: run_id, keys.ROUND: self.round, **self.config}
        if self.transfer_hash is not None:
            config[keys.TRANSFER_HASH] = self.transfer_hash
        arrays = {
            name: record
            for name, record in self.records.items()
            if name != keys.TRANSFER or not has_transfer
        }
        return RecordDict({keys.CONFIG: ConfigRecord(config), **arrays})


def open_reply(reply: Message, question: Question, run_id: str, silo: str | None) -> RecordDict:
    """Return the content of a reply once it is known to answer this very question.

    Args:
        reply: what came back.
        question: what was asked.
        run_id: what the reply must echo.
        silo: the name that the reply must bear; None where it is not yet known.

    Raises:
        RefusedError: it does not.
    """
    if reply.has_error():
        lines = printable_lines(reply.error.reason)
        raise RefusedError(f"it failed: {lines[-1] if lines else 'no reason given'}")
    if not reply.has_content():
        raise RefusedError("its reply is empty")
    content = reply.content
    _check_values(content)
    info = read_info(content)
    if info.get(keys.RUN_ID) != run_id:
        raise RefusedError("its reply belongs to another run")
    number = info.get(keys.ROUND)
    if type(number) is not int or number != question.round:
        raise RefusedError(f"its reply belongs to round {printable(number)}")
    if keys.PROBLEM in info:
        raise RefusedError(printable(info[keys.PROBLEM]))
    if silo is not None and info.get(keys.SILO) != silo:
        raise RefusedError("its reply bears another silo's name")
    if question.transfer_hash not in (None, info.get(keys.TRANSFER_HASH)):
        raise RefusedError("it answered for another transfer set")
    return content


def printable_lines(text: object) -> list[str]:
    """Return the lines of a text that hold more than blanks, each safe to print."""
    lines = str(text or "")[-10_000:].splitlines()
    return [line for each in lines if (line := printable(each))]


def _check_values(content: RecordDict) -> None:
    """Refuse empty texts, bytes and lists, which Flower cannot count."""
    for name, record in content.config_records.items():
        for key, value in record.items():
            if isinstance(value, str | bytes | list) and not value:
                raise RefusedError(
                    f"its record {printable(name)!r} has an empty value, {printable(key)!r}"
                )


def read_info(content: RecordDict) -> ConfigRecord:
    """Return the record that says which silo answers what."""
    info = content.config_records.get(keys.INFO)
    if info is None:
        raise RefusedError(f"its reply has no record {keys.INFO!r}")
    return info


def read_name(info: Mapping[str, Any]) -> str:
    """Return the name by which a silo introduces itself."""
    name = read_text(info, keys.SILO)
    if not SILO_NAME.fullmatch(name):
        raise RefusedError(f"{printable(name)!r} is not a valid name of a silo")
    return name


def read_config(content: RecordDict) -> ConfigRecord:
    """Return a question's ``config``, at the silo.

    Raises:
        ValueError: it has none.
    """
    config = content.config_records.get(keys.CONFIG)
    if config is None:
        raise ValueError(f"the message has no record {keys.CONFIG!r}")
    return config


def read_whole_number(config: Mapping[str, Any], key: str) -> int:
    """Return an integer of a question, at the silo.

    Raises:
        TypeError: it is not one.
    """
    value = config.get(key)
    if not isinstance(value, int):
        raise TypeError(f"{key} is {value!r} where a whole number is expected")
    return value


def seal_reply(content: RecordDict, question: RecordDict, silo: str) -> RecordDict:
    """Add to a reply which silo it is from, and the run and round of its question."""
    config = read_config(question)
    info = content.config_records.get(keys.INFO) or ConfigRecord()
    info[keys.SILO] = silo
    info[keys.RUN_ID] = str(config[keys.RUN_ID])
    info[keys.ROUND] = read_whole_number(config, keys.ROUND)
    content[keys.INFO] = info
    return content
