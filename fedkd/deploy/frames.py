"""Byte strings over a Unix socket, each with its length before it; and who is at its other end."""

from __future__ import annotations

import socket
import struct
import sys

MAX_BYTES = (1 << 31) - 1
"""Of a message without its arrays: a protocol buffer is never longer."""
MAX_ARRAY_BYTES = 1 << 40
READY = b"ready"
"""What the worker sends when it takes a message."""
_LENGTH = struct.Struct("!Q")
_LOCAL_PEERCRED = 1
"""macOS: socket option of level 0 whose value begins with a version and the user's number."""


class ClosedError(ConnectionError):
    """The other end closed the connection, or its process ended."""


def send_frame(connection: socket.socket, content: bytes) -> None:
    """Send one byte string."""
    connection.sendall(_LENGTH.pack(len(content)))
    connection.sendall(content)


def receive_frame(connection: socket.socket, *, limit: int) -> bytes:
    """Receive one byte string of at most ``limit`` bytes.

    Raises:
        ClosedError: the connection ended before the string was complete.
        ValueError: the string is longer than ``limit``.
    """
    (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
    if length > limit:
        raise ValueError(f"a message of {length} bytes was announced; {limit} is the limit")
    return _receive(connection, length)


def _receive(connection: socket.socket, length: int) -> bytes:
    buffer = bytearray(length)
    view, received = memoryview(buffer), 0
    while received < length:
        count = connection.recv_into(view[received:])
        if not count:
            raise ClosedError("the connection was closed")
        received += count
    return bytes(buffer)


def has_hung_up(connection: socket.socket) -> bool:
    """Whether the other end closed the connection; unread bytes stay unread."""
    try:
        return not connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


def peer_uid(connection: socket.socket) -> int | None:
    """Return the number of the user at the other end; None where the system does not tell it.

    The permissions of the socket and of its folder are then the only limit.
    """
    if hasattr(socket, "SO_PEERCRED"):
        size = struct.calcsize("3i")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[1])
    if sys.platform == "darwin":
        return int(struct.unpack_from("2I", connection.getsockopt(0, _LOCAL_PEERCRED, 76))[1])
    return None
