"""Which session a request belongs to: as the client says it, or else by how the conversation began."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from kvstet.api.sessions import Sender, session_of
from kvstet.edits.snapshot import Snapshot

_SHORT_BYTES = 6


def said_session(headers: Mapping[str, str], body: Mapping[str, Any]) -> str | None:
    """As `kvstet.api.sessions.session_of`."""
    return session_of(headers.items(), Sender(body.get("prompt_cache_key"), body.get("metadata")))


def begun_session(snapshot: Snapshot) -> str:
    """A name for conversations that begin alike: of the system prompt and the first message behind it."""
    head = snapshot.num_head_items
    first = next((item.text for item in snapshot.items[head:] if item.role == "user"), "")
    text = f"{len(snapshot.system_text)}:{snapshot.system_text}{first}"
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_SHORT_BYTES).hexdigest()
