"""Server-sent events out of bytes that are cut anywhere.

Written here, and not taken from a library: the decoder of ``httpx-sse`` takes lines of text, so the part that is easy
to get wrong (bytes cut within a character or between CR and LF, the byte order mark, a last event without its empty
line) would be ours all the same; and it keeps an ``id`` for ever, after which every empty line is an event. What a
field means is the HTML standard's, section 9.2.6, with one exception: an event that the end of the stream cuts off
is given out, since several servers leave out the last empty line. A reader finds by its JSON whether it is whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_MARK = b"\xef\xbb\xbf"


def is_event_stream(content_type: str) -> bool:
    """Whether a body with this Content-Type is one."""
    return content_type.strip().lower().startswith("text/event-stream")


@dataclass(frozen=True, slots=True)
class SseEvent:
    data: str
    name: str = ""
    """Its ``event`` field."""


class SseDecoder:
    """Bytes in, events out; comments and events without data are left out. Bytes that are no UTF-8 become U+FFFD."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """Of the line that is not over yet; joined only when it ends, so that a long line costs its length once."""
        self._is_first = True
        self._after_return = False
        """The last byte was a CR, which a LF may belong to."""
        self._name = ""
        self._data: list[str] = []

    def __repr__(self) -> str:
        return f"SseDecoder({sum(map(len, self._pieces))} bytes held, {len(self._data)} lines of data)"

    def feed(self, data: bytes) -> list[SseEvent]:
        if self._after_return and data:
            self._after_return = False
            data = data.removeprefix(b"\n")
        events: list[SseEvent] = []
        start = 0
        for end in _LINE_END.finditer(data):
            self._pieces.append(data[start : end.start()])
            start = end.end()
            self._after_return = start == len(data) and end[0] == b"\r"
            if (event := self._line()) is not None:
                events.append(event)
        if start < len(data):
            self._pieces.append(data[start:])
        return events

    def finish(self) -> list[SseEvent]:
        """No more bytes will come."""
        if self._pieces:
            self._line()
        event = self._event()
        return [] if event is None else [event]

    def _line(self) -> SseEvent | None:
        line = b"".join(self._pieces)
        self._pieces.clear()
        if self._is_first:
            self._is_first = False
            line = line.removeprefix(_MARK)
        if not line:
            return self._event()
        field, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None

    def _event(self) -> SseEvent | None:
        name, data = self._name, self._data
        self._name, self._data = "", []
        return SseEvent("\n".join(data), name) if data else None
