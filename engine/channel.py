"""Messages on a stream between two processes: JSON, and bytes that belong to it.

Each is two lengths (bytes, 32 bits), the JSON and the rest.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, Final

_LENGTHS: Final = struct.Struct("<II")


def send(to: socket.socket, message: Any, data: bytes = b"") -> None:
    """Send one message. Raises OSError where nobody reads it."""
    text = json.dumps(message).encode()
    to.sendall(_LENGTHS.pack(len(text), len(data)) + text + data)


def receive(sender: socket.socket) -> tuple[Any, bytes] | None:
    """The next message, None where the sender is gone. Raises OSError."""
    head = _exactly(sender, _LENGTHS.size)
    if head is None:
        return None
    lengths = _LENGTHS.unpack(head)
    body = _exactly(sender, sum(lengths))
    return None if body is None else (json.loads(body[: lengths[0]]), body[lengths[0] :])


def _exactly(sender: socket.socket, count: int) -> bytes | None:
    data = bytearray(count)
    left = memoryview(data)
    while left:
        received = sender.recv_into(left)
        if not received:
            return None
        left = left[received:]
    return bytes(data)
