"""Names of tools, ids of calls and names of users, as every API takes them.

A name may have 64 characters at OpenAI and 128 at Anthropic, of ``[a-zA-Z0-9_-]`` at both; ids have the same characters
(Kimi's ``functions.bash:0`` is refused by Anthropic), 40 of them at Chat and 64 at Responses. What does not fit is
replaced by something that does: always the same, so that it is a prefix the next time too, and calls and results agree.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from kvstet.dialects.request import Tool

MAX_NAME_CHARS = 64
MAX_ID_CHARS = 40
MAX_USER_CHARS = 64

_DIGEST_CHARS = 8
_FORBIDDEN = re.compile(r"[^a-zA-Z0-9_-]")


def wire_name(name: str) -> str:
    """The name as it can be sent."""
    return _fitting(name, MAX_NAME_CHARS)


def wire_id(id: str) -> str:
    """The id of a call as it can be sent."""
    return _fitting(id, MAX_ID_CHARS)


def wire_user(user: str | None) -> str | None:
    """A user's name as OpenAI takes it; Claude Code sends a JSON text of 200 characters."""
    if user is None or len(user) <= MAX_USER_CHARS:
        return user
    return hashlib.sha256(user.encode(errors="replace")).hexdigest()


def client_names(tools: Iterable[Tool]) -> Mapping[str, str]:
    """What each tool is called by the model -> what the client calls it, for those where that differs."""
    names = (str(tool["function"]["name"]) for tool in tools)
    return {wire: name for name in names if (wire := wire_name(name)) != name}


def _fitting(name: str, max_chars: int) -> str:
    plain = _FORBIDDEN.sub("_", name)
    if plain == name and len(name) <= max_chars and name:
        return name
    digest = hashlib.sha256(name.encode(errors="replace")).hexdigest()[:_DIGEST_CHARS]
    return f"{plain[: max_chars - _DIGEST_CHARS - 1]}_{digest}"
