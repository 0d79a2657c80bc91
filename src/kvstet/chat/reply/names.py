"""Names of tools."""

from __future__ import annotations

from collections.abc import Iterable

_MAX_CHARACTERS = 256
_NEVER = frozenset("<>{}[]()\"'`,;=\\|\uff5c")
"""Parts of markers; the last is the wide bar of DeepSeek's."""


def is_name(name: str) -> bool:
    """Whether this can be the name of a tool."""
    return 0 < len(name) <= _MAX_CHARACTERS and not any(c.isspace() or c in _NEVER for c in name)


def may_become_name(text: str, stops: Iterable[str]) -> bool:
    """Whether text of which only the beginning is known can be a name and one of these stops behind it."""
    name, _, rest = text.strip().partition("\n")
    return len(name) <= 2 * _MAX_CHARACTERS and (not rest or any(stop.startswith(rest.lstrip()) for stop in stops))
