"""The lines of a trace: a header, then each request, and each response when it is over. Documented in docs/traces.md.

A trace is JSON lines, so it can be written and read as a stream, and is of use when its writer was killed. Every line
names what it is by ``dir``; readers pass over lines and fields that they do not know. A request and its response share
``seq``. Packed traces end in ``.xz``.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

VERSION = 1

Redacted = Literal["keys", "text"]
"""What was taken out: keys always, the text too where that was asked for."""


class Header(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="dir", tag="header"):
    """The first line. Traces of others may have none."""

    kvstet_trace: int
    """Version of the format."""
    by: str = ""
    """Who wrote it: ``kvstet 0.1.0 serve``, or the client whose file was imported."""
    wall: float | None = None
    """Unix time at which ``t`` was 0, seconds."""
    redacted: Redacted = "keys"


class Request(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="dir", tag="request"):
    """A request as it was sent."""

    seq: int
    t: float = 0.0
    """When it came, seconds from the trace's beginning."""
    method: str = "POST"
    path: str
    """With the query. Its end tells the dialect: ``/chat/completions``, ``/messages``, ``/responses``."""
    headers: list[tuple[str, str]] = msgspec.field(default_factory=list[tuple[str, str]])
    body_raw: str
    """Byte for byte, as UTF-8."""
    label: str = ""
    """For people."""


class Call(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A tool call of a reply."""

    name: str
    args_raw: str
    """The arguments as the model wrote them, before any client has parsed them."""
    id: str = ""


class Plan(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was replied."""

    reasoning: str = ""
    text: str = ""
    calls: list[Call] = msgspec.field(default_factory=list[Call])


class Response(msgspec.Struct, kw_only=True, omit_defaults=True, tag_field="dir", tag="response"):
    """What came of a request."""

    seq: int
    t: float = 0.0
    """When it was over, seconds from the trace's beginning."""
    status: int
    """HTTP's; 499: the client hung up before the response began."""
    plan: Plan | None = None
    """None: nothing was replied, or it could not be read."""
    tokens: list[int] | None = None
    """The reply's tokens, where the server knew them."""
    model: str = ""
    """Who replied; tokens mean something to this model only."""
    usage: dict[str, Any] | None = None
    """As the server told it, in its dialect."""
    kvstet: dict[str, Any] | None = None
    """What a kvstet server told of it: reuse, seconds, verdict, edits."""
    first_seconds: float | None = None
    """From the request until the first piece of the reply."""
    broken_off: bool = False
    """The client hung up, or the server failed, before the reply came to its end."""
    error_raw: str | None = None
    """Body of a response that is no reply."""
    kind: str = ""
    """What the request was, for people."""


Line = Header | Request | Response
