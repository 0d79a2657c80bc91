"""Requests that are sent on otherwise than they came: translated, arranged, with another model, or with a question.

Without translation all of this fails open: what is not understood, or raises, passes byte for byte.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

from starlette.exceptions import HTTPException

from kvstet.api.body import in_worker
from kvstet.dialects.values import to_json
from kvstet.gateway.call import Call, Passage, Rearranged
from kvstet.gateway.changes import ASK_WHY, CACHE_KEY, MODEL
from kvstet.gateway.copy import MAX_COPY_BYTES
from kvstet.gateway.forwarder import Outgoing, as_it_comes, place_of
from kvstet.gateway.headers import CHANGES, WITHOUT, Fields, has, onward, texts_of, value_of, with_body, without
from kvstet.gateway.inbound import Inbound
from kvstet.gateway.ports import Arranger, Body, Change
from kvstet.gateway.session import said_session
from kvstet.gateway.translation import Translated, Translation
from kvstet.gateway.upstream import Upstream
from kvstet.gateway.why import Asking, thread_of

logger = logging.getLogger("kvstet.gateway")


@dataclass(frozen=True, slots=True)
class OwnChange:
    """A change that the gateway makes itself."""

    name: str
    what: str
    entry: int | None = None


@dataclass(frozen=True, slots=True)
class Models:
    """The upstream's name for each model that clients name."""

    default: str | None = None
    """For all that are not in ``names``; None: they stay as they are."""
    names: Mapping[str, str] = field(default_factory=dict[str, str])

    def __bool__(self) -> bool:
        return bool(self.default or self.names)

    def named(self, model: str) -> str:
        return self.names.get(model) or self.default or model


@dataclass(frozen=True, slots=True)
class Preparations:
    """What is to be done with requests."""

    models: Models = field(default_factory=Models)
    arranger: Arranger | None = None
    """None: nothing is arranged."""
    asking: Asking | None = None
    without: frozenset[str] = frozenset()
    """Changes that are not made."""
    max_bytes: int = MAX_COPY_BYTES

    def __bool__(self) -> bool:
        return bool(self.models) or self.arranger is not None or self.asking is not None


class Preparer:
    """Prepares requests for one upstream."""

    def __init__(
        self,
        upstream: Upstream,
        translation: Translation,
        preparations: Preparations,
        on_failure: Callable[[str], None],
    ) -> None:
        self._upstream = upstream
        self._translation = translation
        self._preparations = preparations
        self._on_failure = on_failure

    def __repr__(self) -> str:
        return f"Preparer({self._upstream.title}, {self._translation})"

    async def prepared(self, passage: Passage, inbound: Inbound) -> Outgoing:
        """Raises InvalidRequest and 404 where a request that has to be translated cannot be."""
        call = passage.call
        spoken = self._translation.spoken(call)
        if spoken is None:
            if not call.asks_model or not self._preparations:
                return as_it_comes(self._upstream, passage, inbound)
            return await self._changed(passage, inbound)
        if not call.asks_model:
            raise HTTPException(
                404, f"{self._upstream.title} has no {call.path}, and nothing that it could be made of."
            )
        content = await inbound.beginning(self._preparations.max_bytes)
        if not inbound.is_over:
            raise HTTPException(413, f"The body is larger than {self._preparations.max_bytes:,} bytes.")
        translated = await in_worker(len(content), partial(self._translated, call, content))
        passage.spoken, passage.dropped = spoken, translated.dropped
        return await self._outgoing(passage, content, translated)

    async def _changed(self, passage: Passage, inbound: Inbound) -> Outgoing:
        """In the client's own dialect."""
        content = await inbound.beginning(self._preparations.max_bytes)
        if not inbound.is_over:
            outgoing = as_it_comes(self._upstream, passage, inbound)
            return replace(outgoing, body=passage.sent.tee(inbound.after(content)))
        body = await in_worker(len(content), partial(_object, content))
        if body is None:
            return self._unchanged(passage, content)
        return await self._outgoing(passage, content, Translated(body))

    async def _outgoing(self, passage: Passage, content: bytes, translated: Translated) -> Outgoing:
        changed = await in_worker(len(content), partial(self._arranged, passage, translated))
        passage.changes = changed.changes
        if self._preparations.arranger is not None:
            passage.rearranged = Rearranged(translated.body, changed.body or translated.body, changed.headers)
        names = ", ".join(dict.fromkeys(change.name for change in changed.changes))
        added: Fields = [(CHANGES, names.encode("ascii", "replace"))] if names else []
        if translated.returning is not None:
            encoded = changed.encoded or to_json(translated.body).encode()
            place, fields = self._translation.onward(passage.call, passage.spoken, len(encoded))
            passage.original = content
            passage.sent.add(encoded)
            return Outgoing(place, _with(fields, changed.headers), encoded, translated.returning, added)
        outgoing = self._unchanged(passage, changed.encoded or content)
        fields = _with(without(outgoing.fields, WITHOUT), changed.headers)
        if changed.encoded is not None:
            passage.original = content
            fields = with_body(fields, len(changed.encoded))
        return replace(outgoing, fields=fields, added=added)

    def _unchanged(self, passage: Passage, content: bytes) -> Outgoing:
        passage.sent.add(content)
        place = place_of(self._upstream, passage.call)
        return Outgoing(place, onward(passage.call.fields, place.host, self._upstream.credential), content)

    def _translated(self, call: Call, content: bytes) -> Translated:
        return self._translation.translated(call, content, self._preparations.models.named)

    def _arranged(self, passage: Passage, translated: Translated) -> _Changed:
        try:
            return self._with_changes(passage, translated)
        except Exception as error:
            self._on_failure("arrangement")
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.warning(
                "request %s passes as it came, since arranging it failed: %s\n%s",
                passage.call.id,
                type(error).__name__,
                frames,
            )
            return _Changed()

    def _with_changes(self, passage: Passage, translated: Translated) -> _Changed:
        call, wanted, spoken = passage.call, self._preparations, passage.spoken
        assert spoken is not None, "only requests of a dialect are prepared"
        unwanted = wanted.without | _names_in(value_of(call.fields, WITHOUT))
        body, changes, headers = translated.body, list[Change](), tuple[tuple[str, str], ...]()
        session = said_session(texts_of(call.fields), body)
        passage.thread = thread_of(call.owner, session, body)
        if translated.returning is None and MODEL not in unwanted:
            body, changes = self._renamed(body)
        if wanted.arranger is not None:
            arranged = wanted.arranger.arrange(body, spoken.name, owner=call.owner, session=session, without=unwanted)
            body, headers = arranged.body, _unsaid(arranged.headers, call.fields)
            changes += arranged.changes
        if headers and all(change.name != CACHE_KEY for change in changes):
            changes.append(OwnChange(CACHE_KEY, f"the field {headers[0][0]} is sent"))
        if wanted.asking is not None and ASK_WHY not in unwanted:
            asked = wanted.asking.asking(body, spoken.name, passage.thread)
            changes += [] if asked is None else [OwnChange(ASK_WHY, "the vendor is asked why its cache misses")]
            body = body if asked is None else asked
        is_changed = body is not translated.body and body != translated.body
        return _Changed(encode(body) if is_changed else None, tuple(changes), headers, body)

    def _renamed(self, body: Body) -> tuple[Body, list[Change]]:
        model = body.get("model")
        named = self._preparations.models.named(model) if isinstance(model, str) else model
        if named == model:
            return body, []
        return {**body, "model": named}, [OwnChange(MODEL, "another model is asked")]


@dataclass(frozen=True, slots=True)
class _Changed:
    encoded: bytes | None = field(default=None, repr=False)
    """None: it stays as it is."""
    changes: tuple[Change, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: Body | None = field(default=None, repr=False)
    """As it was encoded; None: arranging it failed."""


def encode(body: Body) -> bytes:
    """As JSON. Halves of surrogate pairs stay what they are, as escapes."""
    try:
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        return json.dumps(body, separators=(",", ":")).encode()


def _object(content: bytes) -> Body | None:
    """A JSON object, with every number and half of a surrogate pair as it is; None: it is none."""
    try:
        parsed: Any = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return cast("Body", parsed) if isinstance(parsed, dict) else None


def _names_in(value: bytes) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in value.decode("latin-1").split(",") if name.strip())


def _unsaid(headers: Iterable[tuple[str, str]], fields: Fields) -> tuple[tuple[str, str], ...]:
    """Those of which the client has sent none."""
    return tuple(pair for pair in headers if not has(fields, pair[0].lower().encode("latin-1")))


def _with(fields: Fields, headers: Iterable[tuple[str, str]]) -> Fields:
    return [*fields, *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers)]
