"""Requests that are sent on otherwise than they came: translated, arranged, with another model, or with a question.

Without translation all of this fails open: what is not understood, or raises, passes byte for byte.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from starlette.exceptions import HTTPException

from kvstet.api.body import in_worker
from kvstet.context.arranging.optimiser import Change
from kvstet.dialects.dialect import Dialect
from kvstet.dialects.values import body_of, to_json
from kvstet.errors import InvalidRequest
from kvstet.gateway.changing.arranger import Arranger
from kvstet.gateway.changing.asking import Asking, thread_of
from kvstet.gateway.changing.changes import ASK_WHY, CACHE_KEY, MODEL
from kvstet.gateway.changing.translation import Translation
from kvstet.gateway.copy import MAX_COPY_BYTES
from kvstet.gateway.headers import CHANGES, WITHOUT, Fields, has, texts_of, value_of, with_body, without
from kvstet.gateway.inbound import Inbound
from kvstet.gateway.outgoing import Outgoing, addressed, as_it_comes
from kvstet.gateway.passage import Body, Passage, Rearranged
from kvstet.gateway.session import said_session
from kvstet.gateway.upstream import Upstream

logger = logging.getLogger("kvstet.gateway")


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
        """Raises InvalidRequest and HTTPException where a request that has to be translated cannot be."""
        call = passage.call
        spoken = self._translation.spoken(call)
        if spoken is not None:
            return await self._translated(passage, spoken, inbound)
        if call.asks_model and self._preparations:
            return await self._changed(passage, inbound)
        return as_it_comes(self._upstream, passage, inbound)

    async def _translated(self, passage: Passage, spoken: Dialect, inbound: Inbound) -> Outgoing:
        if not passage.call.asks_model:
            raise HTTPException(
                404, f"{self._upstream.title} has no {passage.call.path}, and nothing that it could be made of."
            )
        content = await inbound.beginning(self._preparations.max_bytes)
        if not inbound.is_over:
            raise HTTPException(413, f"The body is larger than {self._preparations.max_bytes:,} bytes.")
        return await in_worker(len(content), partial(self._in_another_dialect, passage, spoken, content))

    async def _changed(self, passage: Passage, inbound: Inbound) -> Outgoing:
        content = await inbound.beginning(self._preparations.max_bytes)
        if not inbound.is_over:
            outgoing = as_it_comes(self._upstream, passage, inbound)
            return replace(outgoing, body=passage.sent.tee(inbound.after(content)))
        return await in_worker(len(content), partial(self._in_its_own_dialect, passage, content))

    def _in_another_dialect(self, passage: Passage, spoken: Dialect, content: bytes) -> Outgoing:
        call, asked = passage.call, body_of(content)
        passage.session = said_session(texts_of(call.fields), asked)
        translated = self._translation.translated(call, spoken, asked, self._preparations.models.named)
        passage.spoken, passage.dropped = spoken, translated.dropped
        arranged = self._arranged(passage, spoken, translated.body, unwanted=frozenset({MODEL}))
        encoded = arranged.encoded or to_json(translated.body).encode()
        place, fields = self._translation.addressed(call, spoken, len(encoded))
        passage.sent.add(encoded)
        passage.is_changed = True
        return Outgoing(place, _with(fields, arranged.headers), encoded, translated.returning, arranged.told)

    def _in_its_own_dialect(self, passage: Passage, content: bytes) -> Outgoing:
        place, fields = addressed(self._upstream, passage.call)
        try:
            body = body_of(content)
        except InvalidRequest:
            passage.sent.add(content)
            return Outgoing(place, fields, content)
        passage.session = said_session(texts_of(passage.call.fields), body)
        assert passage.spoken is not None, "only requests of a dialect are prepared"
        arranged = self._arranged(passage, passage.spoken, body)
        fields = _with(without(fields, WITHOUT), arranged.headers)
        if arranged.encoded is not None:
            content, passage.is_changed = arranged.encoded, True
            fields = with_body(fields, len(content))
        passage.sent.add(content)
        return Outgoing(place, fields, content, added=arranged.told)

    def _arranged(
        self, passage: Passage, spoken: Dialect, body: Body, unwanted: frozenset[str] = frozenset()
    ) -> _Arranged:
        unwanted |= self._preparations.without | _names_in(value_of(passage.call.fields, WITHOUT))
        try:
            arranged = self._with_changes(passage, spoken, body, unwanted)
        except Exception as error:
            self._on_failure("arrangement")
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.warning(
                "request %s passes as it came, since arranging it failed: %s\n%s",
                passage.call.id,
                type(error).__name__,
                frames,
            )
            arranged = _Arranged(body)
        passage.changes = arranged.changes
        if self._preparations.arranger is not None:
            passage.rearranged = Rearranged(body, arranged.body, arranged.headers)
        return arranged

    def _with_changes(self, passage: Passage, spoken: Dialect, came: Body, unwanted: frozenset[str]) -> _Arranged:
        call, wanted, body = passage.call, self._preparations, came
        changes, headers = list[Change](), tuple[tuple[str, str], ...]()
        if MODEL not in unwanted:
            body, changes = self._renamed(body)
        if wanted.arranger is not None:
            arranged = wanted.arranger.arrange(
                body, spoken.name, owner=call.owner, session=passage.session, without=unwanted
            )
            body, headers = arranged.body, _unsaid(arranged.headers, call.fields)
            changes += arranged.changes
        if headers and all(change.name != CACHE_KEY for change in changes):
            changes.append(Change(CACHE_KEY, None, f"the field {headers[0][0]} is sent"))
        if wanted.asking is not None:
            passage.thread = thread_of(call.owner, passage.session, came)
            asked = wanted.asking.asking(body, spoken.name, passage.thread) if ASK_WHY not in unwanted else None
            if asked is not None:
                body = asked
                changes.append(Change(ASK_WHY, None, "the vendor is asked why its cache misses"))
        return _Arranged(body, None if body == came else to_json(body).encode(), tuple(changes), headers)

    def _renamed(self, body: Body) -> tuple[Body, list[Change]]:
        model = body.get("model")
        named = self._preparations.models.named(model) if isinstance(model, str) else model
        if named == model:
            return body, []
        return {**body, "model": named}, [Change(MODEL, None, "another model is asked")]


@dataclass(frozen=True, slots=True)
class _Arranged:
    body: Body = field(repr=False)
    encoded: bytes | None = field(default=None, repr=False)
    """None: it stays as it came."""
    changes: tuple[Change, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def told(self) -> Fields:
        """What the client is told of it, in the response."""
        names = ", ".join(dict.fromkeys(change.name for change in self.changes))
        return [(CHANGES, names.encode("ascii", "replace"))] if names else []


def _names_in(value: bytes) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in value.decode("latin-1").split(",") if name.strip())


def _unsaid(headers: Iterable[tuple[str, str]], fields: Fields) -> tuple[tuple[str, str], ...]:
    """Those of which the client has sent none."""
    return tuple(pair for pair in headers if not has(fields, pair[0].lower().encode("latin-1")))


def _with(fields: Fields, headers: Iterable[tuple[str, str]]) -> Fields:
    return [*fields, *((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers)]
