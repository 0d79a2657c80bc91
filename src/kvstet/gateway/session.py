"""Which session a request belongs to: as the client says it, or else by how the conversation began."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from kvstet.api.sessions import Sender, session_of
from kvstet.edits.snapshot import Snapshot

_HEADERS = (
    "x-session-id",
    "session_id",
    "x-claude-code-session-id",
    "session-id",
    "x-session-affinity",
)
"""In the order in which they count."""

_SHORT_BYTES = 6


def said_session(headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
    """A short name of the session that the client names; None where it names none. The id itself may tell who it is."""
    for name in _HEADERS:
        if headers.get(name):
            return _short(headers[name])
    return session_of((), Sender(body.get("prompt_cache_key"), body.get("metadata")))


def begun_session(snapshot: Snapshot) -> str:
    """A name for conversations that begin alike: of the system prompt and the first message behind it."""
    head = snapshot.num_head_items
    first = next((item.text for item in snapshot.items[head:] if item.role == "user"), "")
    return _short(f"{len(snapshot.system_text)}:{snapshot.system_text}{first}")


def _short(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_SHORT_BYTES).hexdigest()
