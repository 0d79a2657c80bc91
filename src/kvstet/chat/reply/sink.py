"""Where a reply goes that is being read: deltas, joined where they say more of the same."""

from __future__ import annotations

from kvstet.chat.deltas import ArgumentsDelta, CallBegin, CallEnd, Delta, ReasoningDelta, TextDelta


class Sink:
    """Collects deltas and numbers calls."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._num_calls = 0

    def __repr__(self) -> str:
        return f"Sink({len(self._deltas)} deltas, {self._num_calls} calls)"

    @property
    def num_calls(self) -> int:
        return self._num_calls

    def drain(self) -> list[Delta]:
        """What came since the last time."""
        deltas, self._deltas = self._deltas, []
        return _joined(deltas)

    def reasoning(self, text: str) -> None:
        self._deltas.append(ReasoningDelta(text))

    def text(self, text: str) -> None:
        self._deltas.append(TextDelta(text))

    def begin(self, name: str) -> None:
        self._deltas.append(CallBegin(self._num_calls, name))
        self._num_calls += 1

    def arguments(self, json: str) -> None:
        self._deltas.append(ArgumentsDelta(self._num_calls - 1, json))

    def end(self) -> None:
        self._deltas.append(CallEnd(self._num_calls - 1))


def _joined(deltas: list[Delta]) -> list[Delta]:
    joined: list[Delta] = []
    pieces: list[str] = []
    for delta in deltas:
        piece = _piece(delta)
        if not piece and not isinstance(delta, CallBegin | CallEnd):
            continue
        if joined and piece and type(joined[-1]) is type(delta):
            pieces.append(piece)
            continue
        _settle(joined, pieces)
        joined.append(delta)
        pieces = [piece]
    _settle(joined, pieces)
    return joined


def _piece(delta: Delta) -> str:
    if isinstance(delta, ReasoningDelta | TextDelta):
        return delta.text
    return delta.json if isinstance(delta, ArgumentsDelta) else ""


def _settle(joined: list[Delta], pieces: list[str]) -> None:
    """Put all pieces into the last delta."""
    if len(pieces) < 2:
        return
    last, text = joined[-1], "".join(pieces)
    if isinstance(last, ArgumentsDelta):
        joined[-1] = ArgumentsDelta(last.index, text)
    elif isinstance(last, ReasoningDelta):
        joined[-1] = ReasoningDelta(text)
    else:
        joined[-1] = TextDelta(text)
