"""Messages between the server and an engine process over a socket pair: length-prefixed pickles.

Both ends are this program, under one user, on an anonymous socket that no one else can open; pickle is safe there.
"""

from __future__ import annotations

import asyncio
import pickle
import select
import socket
import struct
from typing import Any

LENGTH = struct.Struct("!Q")
RECEIVE_BYTES = 1 << 20


def encode(message: object) -> bytes:
    """One frame."""
    payload = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return LENGTH.pack(len(payload)) + payload


class Channel:
    """The engine process's end: it sends at once, and receives what has come without waiting longer than told."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray()

    def send(self, message: object) -> None:
        self._socket.sendall(encode(message))

    def receive(self, timeout_seconds: float | None) -> list[Any]:
        """All messages that are there; waits for the first one up to the time given (None: for ever).

        Raises EOFError when the server is gone.
        """
        messages = self._complete()
        wait = 0.0 if messages else timeout_seconds
        while select.select([self._socket], [], [], wait)[0]:
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise EOFError("the server closed the channel")
            self._buffer += data
            messages += self._complete()
            # Half a message is no reason to go: its rest is on the way.
            wait = 0.0 if messages else timeout_seconds
        return messages

    def _complete(self) -> list[Any]:
        messages: list[Any] = []
        while len(self._buffer) >= LENGTH.size:
            stop = LENGTH.size + LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < stop:
                break
            messages.append(pickle.loads(memoryview(self._buffer)[LENGTH.size : stop]))
            del self._buffer[:stop]
        return messages


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message at the server's end. Raises asyncio.IncompleteReadError when the engine process is gone."""
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    return pickle.loads(await reader.readexactly(size))
