"""Flower's messages over a Unix socket, of any size.

A protocol buffer holds 2 GiB at most and is a copy. So the arrays' bytes follow the message, each
as a frame of its own.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedkd.deploy.frames import MAX_ARRAY_BYTES, MAX_BYTES, receive_frame, send_frame


def send_message(connection: socket.socket, message: Message) -> None:
    """Send a message."""
    send_frame(connection, message_to_proto(_without_data(message)).SerializeToString())
    for array in _arrays_of(message):
        send_frame(connection, array.data)


def receive_message(connection: socket.socket) -> Message:
    """Receive a message.

    Raises:
        ClosedError: the connection ended before the message was complete.
        ValueError: a part of it is longer than any message can have.
    """
    proto = ProtoMessage.FromString(receive_frame(connection, limit=MAX_BYTES))
    message = message_from_proto(proto)
    for array in _arrays_of(message):
        array.data = receive_frame(connection, limit=MAX_ARRAY_BYTES)
    return message


def _arrays_of(message: Message) -> Iterator[Array]:
    """Yield the arrays of all records, in the order in which both sides have them."""
    if message.has_content():
        for record in message.content.array_records.values():
            yield from record.values()


def _without_data(message: Message) -> Message:
    if not message.has_content():
        return message
    content = RecordDict(dict(message.content))
    for name, record in message.content.array_records.items():
        content[name] = ArrayRecord(
            {key: Array(each.dtype, each.shape, each.stype, b"") for key, each in record.items()}
        )
    return make_message(message.metadata, content)
