"""Flower's messages over a Unix socket, of any size.

A protocol buffer holds 2 GiB at most and is a copy. So the arrays' bytes follow the message, each
as a frame of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedkd.deploy.frames import MAX_ARRAY_BYTES, MAX_BYTES, receive_frame, send_frame


def send_message(connection: socket.socket, message: Message) -> None:
    """Send a message, which loses its arrays meanwhile, so that there are never two copies."""
    send_frame(connection, message_to_proto(_without_data(message)).SerializeToString())
    for record in _records_of(message):
        for name in list(record):
            send_frame(connection, record.pop(name).data)


def receive_message(connection: socket.socket) -> Message:
    """Receive a message.

    Raises:
        ClosedError: the connection ended before the message was complete.
        ValueError: a part of it is longer than any message can have.
    """
    proto = ProtoMessage.FromString(receive_frame(connection, limit=MAX_BYTES))
    message = message_from_proto(proto)
    for record in _records_of(message):
        for array in record.values():
            array.data = receive_frame(connection, limit=MAX_ARRAY_BYTES)
    return message


def _records_of(message: Message) -> Iterable[ArrayRecord]:
    """Return the records of arrays, in the order in which both sides have them."""
    return message.content.array_records.values() if message.has_content() else ()


def _without_data(message: Message) -> Message:
    if not message.has_content():
        return message
    content = RecordDict(dict(message.content))
    for name, record in message.content.array_records.items():
        content[name] = ArrayRecord(
            {key: Array(each.dtype, each.shape, each.stype, b"") for key, each in record.items()}
        )
    return make_message(message.metadata, content)
