"""Asking the vendor why its cache missed: each request names the reply before it, which the vendor compares it with.

Rules. Anthropic: ``diagnostics.previous_message_id``; null opts in on the first turn (its SDK's BetaDiagnosticsParam).
OpenAI: ``prompt_cache_options.comparison_response_id`` of the Responses API (its SDK's ResponseCreateParams).
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from threading import Lock
from typing import Any, cast

from kvstet.gateway.passage import Body
from kvstet.providers.provider import Diagnostics

_MAX_THREADS = 1024
_OPENS_WITH_NULL = frozenset({"diagnostics.previous_message_id"})
"""Fields that are sent without a reply to compare with, too."""


class Asking:
    """Knows the last reply of each conversation by its id. Thread-safe."""

    def __init__(self, diagnostics: Sequence[Diagnostics]) -> None:
        self._paths = {each.dialect: each.ask for each in diagnostics}
        self._last: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Asking({self._paths}, {len(self._last)} conversations)"

    def asking(self, body: Body, dialect: str, thread: str) -> Body | None:
        """The body with the question. None: it asks already, or there is nothing to compare with."""
        path = self._paths.get(dialect)
        if path is None:
            return None
        with self._lock:
            last = self._last.get(thread)
        if last is None and path not in _OPENS_WITH_NULL:
            return None
        return _with_field(body, path.split("."), last)

    def heard(self, thread: str, reply_id: str) -> None:
        """The reply of this id was the last one."""
        with self._lock:
            self._last[thread] = reply_id
            self._last.move_to_end(thread)
            while len(self._last) > _MAX_THREADS:
                self._last.popitem(last=False)


def thread_of(owner: str, session: str | None, body: Mapping[str, Any]) -> str:
    """A name of the conversation: of how it begins, apart from those of other owners and sessions."""
    told: object = body.get("messages") or body.get("input")
    first = list(_first(cast("list[object]", told))) if isinstance(told, list) else told
    begins = [owner, session, body.get("system"), body.get("instructions"), first]
    return blake2b(json.dumps(_unmarked(begins)).encode(), digest_size=16).hexdigest()


def _first(messages: Sequence[object]) -> Iterator[object]:
    """Up to the user's first message."""
    for message in messages:
        yield message
        if isinstance(message, dict) and cast("Body", message).get("role") == "user":
            return


def _unmarked(tree: object) -> object:
    """Without cache marks, which move as a conversation grows."""
    match tree:
        case dict():
            fields = cast("dict[str, object]", tree)
            return {name: _unmarked(value) for name, value in fields.items() if name != "cache_control"}
        case list():
            return [_unmarked(value) for value in cast("list[object]", tree)]
        case _:
            return tree


def _with_field(body: Body, path: Sequence[str], value: object) -> Body | None:
    """None: the field is there, or its place is taken by something else."""
    name, *rest = path
    if not rest:
        return None if name in body else {**body, name: value}
    inner = body.get(name)
    if inner is None:
        inner = {}
    if not isinstance(inner, dict):
        return None
    changed = _with_field(cast("Body", inner), rest, value)
    return None if changed is None else {**body, name: changed}
