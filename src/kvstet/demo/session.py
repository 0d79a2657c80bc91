"""The recorded session that the demo replays: requests of a real client, cut to fit a small model.

The data lies beside this module; `scripts/make_demo_session.py` made it, and its first line says what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

import msgspec

Kind = Literal["title", "first", "step", "turn", "subagent", "edit"]
"""What a request is to the conversation.

``title``: a side request with its own system prompt. ``first``: a conversation begins. ``step``: the last reply and its
tool results are appended. ``turn``: the last reply and a new user message are appended. ``subagent``: a conversation of
its own, with another set of tools. ``edit``: something inside what was sent before has changed.
"""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the session comes from and what was done to it; one phrase each."""

    client: str
    recorded: str
    server: str
    cut: str
    rights: str


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """One request as the client sent it, and the reply it got then."""

    label: str
    """A few words for a table."""
    kind: Kind
    body: dict[str, Any]
    """Body of a chat completion request, in OpenAI's dialect."""
    recorded_reply: dict[str, Any]
    """The assistant message as it was streamed; tool arguments have the spacing that the client later removed."""


@dataclass(frozen=True, slots=True)
class Session:
    """Requests in the order in which they were sent."""

    provenance: Provenance
    requests: tuple[RecordedRequest, ...]


def load_session() -> Session:
    """The session that ships with kvstet."""
    return parse_session(files("kvstet.demo").joinpath("session.jsonl").read_bytes())


def parse_session(data: bytes) -> Session:
    """A `Provenance` line, then one `RecordedRequest` per line. ``msgspec.ValidationError`` where a line is neither."""
    header, *lines = data.splitlines()
    return Session(
        msgspec.json.decode(header, type=Provenance),
        tuple(msgspec.json.decode(line, type=RecordedRequest) for line in lines),
    )
