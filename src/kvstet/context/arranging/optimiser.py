"""Requests of clients as they are, arranged so that a hosted model's cache hits.

::

    optimiser = Optimiser(provider_named("anthropic"))
    arranged = optimiser.arrange(body, "messages")     # the request's own JSON, in its own dialect
    send(arranged.body)                                # arranged.changes says what is not as the client sent it

Every change has a name and can be left out. What was sent once is said the same way ever after.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from threading import Lock
from typing import cast

from kvstet.context.arranging.breakpoints import Marking, marked
from kvstet.context.arranging.lens import Body, DialectName, Lens, lens_of
from kvstet.context.arranging.riding import Live, ridden
from kvstet.context.equivalent.catalogue import NAMES, SENTENCES
from kvstet.context.equivalent.equivalence import DROPPED, Equivalence, conversation_of
from kvstet.context.memory import digest
from kvstet.context.message import Message, num_head_messages, role_of, text_of, with_text
from kvstet.context.outputs import cut
from kvstet.context.writing.payback import Rates
from kvstet.providers.prices import context_length_of
from kvstet.providers.provider import Provider
from kvstet.types import SubstitutionName

ARRANGEMENTS = {
    **{name: sentence for name, sentence in SENTENCES.items() if name != "reasoning"},
    "summary-request": "A request for a summary, which has no tools, rides on the conversation itself.",
    "outputs": "Outputs of tools are cut when they enter, where they are longer than you allow.",
    "breakpoints": "The places up to which a provider caches are marked, where the client marks none.",
    "cache-key": "A key keeps requests that begin alike on one machine of the provider.",
}
"""Each with what it does."""

_MAX_CONVERSATIONS = 64
_MAX_CHARACTERS = 1 << 26
"""Of all that are remembered together."""
_CHARACTERS_PER_TOKEN = 3


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that goes out otherwise than it came."""

    name: str
    entry: int | None
    """Which of the request's messages or items; None for its instructions, tools and options."""
    what: str
    """In a short sentence, which quotes nothing of the prompt."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """What to send. It is the very body that came where there are no changes."""

    body: Body
    changes: tuple[Change, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    """To be sent beside it, where the client sends none of that name."""


class Optimiser:
    """Remembers the latest conversations, in memory; thread-safe. One for each upstream."""

    def __init__(
        self,
        provider: Provider,
        *,
        without: Iterable[str] = (),
        max_output_characters: int | None = None,
        num_context_tokens: int | None = None,
    ) -> None:
        """Outputs are cut where ``max_output_characters`` says so. ``num_context_tokens`` is the model's context; None:
        as prices' data know it. Where nobody does, nothing dropped is kept, and no request rides on a longer one."""
        self._provider = provider
        self._num_context_tokens = num_context_tokens
        self._without = frozenset(without)
        self._max_output_characters = max_output_characters
        self._equivalence = Equivalence()
        self._live: OrderedDict[bytes, Live] = OrderedDict()
        self._num_live_characters = 0
        self._lock = Lock()

    def __repr__(self) -> str:
        return f"Optimiser({self._provider.name}, {len(self._live)} conversations, without={sorted(self._without)})"

    def arrange(
        self,
        body: Body,
        dialect: DialectName,
        *,
        owner: str = "",
        session: str | None = None,
        without: Iterable[str] = (),
    ) -> Arranged:
        """The request as it should go out. It is never changed in place.

        ``owner`` is whose it is: nothing that one has sent is said to another. ``session`` is the client's name for the
        conversation.
        """
        names = frozenset(ARRANGEMENTS) - self._without - frozenset(without)
        try:
            return self._arranged(lens_of(body, dialect), owner, session, names)
        except (RecursionError, ValueError):
            # Nested too deeply, or numbers of thousands of digits: whether that can be read is for the provider to say.
            return Arranged(body)

    def _arranged(self, sent: Lens, owner: str, session: str | None, names: Set[str]) -> Arranged:
        dialect, model = sent.dialect, str(sent.body.get("model", ""))
        rule = self._provider.rule_for(model, dialect)
        rates = Rates.of(self._provider, rule)
        room = self._num_context_tokens or context_length_of(self._provider, model) or 0
        arranged = self._ridden(sent, owner, rates, room) if "summary-request" in names else None
        if arranged is None:
            arranged = self._said(sent, owner, names, room)
            self._remember(sent, arranged.body, owner)
        # A request that rides goes where the conversation is cached.
        key = digest(owner, session or _head(lens_of(arranged.body, dialect))).hex()
        body, added, headers = marked(arranged.body, dialect, Marking.by(rule), key=key, names=names)
        changes = (*arranged.changes, *(Change(name, None, what) for name, what in added))
        return Arranged(body, changes, tuple(headers))

    def _said(self, sent: Lens, owner: str, names: Set[str], room: int) -> Arranged:
        """With what the equivalence and the cutting of outputs make of it."""
        kept = DROPPED if room == 0 else {"reasoning"}
        wanted = cast("frozenset[SubstitutionName]", (names & NAMES) - kept)
        arranged = self._followed(sent, owner, wanted, names)
        keeps_dropped = any(change.name in DROPPED for change in arranged.changes)
        if keeps_dropped and not _fits(lens_of(arranged.body, sent.dialect), room):
            self._equivalence.give_up(sent.messages, owner=owner)
            arranged = self._followed(sent, owner, wanted, names)
        return arranged

    def _followed(self, sent: Lens, owner: str, wanted: frozenset[SubstitutionName], names: Set[str]) -> Arranged:
        said = self._equivalence.follow(sent.messages, sent.tools, owner=owner, names=wanted)
        changes = [Change(each.name, _entry(sent, each.message), each.what) for each in said.substitutions]
        messages, cuts = self._cut(said.messages) if "outputs" in names else (said.messages, [])
        changes += [Change("outputs", _entry(sent, index), "the tool's output is cut") for index in cuts]
        return Arranged(sent.written(messages, said.tools), tuple(changes))

    def _cut(self, messages: Sequence[Message]) -> tuple[list[Message], list[int]]:
        limit = self._max_output_characters
        short = list(messages)
        cuts: list[int] = []
        if limit is None:
            return short, cuts
        for index, message in enumerate(messages):
            text = text_of(message) if role_of(message) == "tool" else None
            if text and (shortened := cut(text, limit)) != text:
                short[index] = with_text(message, shortened)
                cuts.append(index)
        return short, cuts

    def _ridden(self, sent: Lens, owner: str, rates: Rates, room: int) -> Arranged | None:
        """On a conversation of the same owner, where there is room and that costs less."""
        with self._lock:
            conversations = [live for key, live in reversed(self._live.items()) if key.startswith(_prefix(owner))]
        body = ridden(sent, conversations)
        if body is None:
            return None
        riding = lens_of(body, sent.dialect)
        if not _is_cheaper(riding, sent, rates) or not _fits(riding, room):
            return None
        return Arranged(
            body, (Change("summary-request", None, "it goes out behind the conversation that it asks about"),)
        )

    def _remember(self, sent: Lens, arranged: Body, owner: str) -> None:
        key = _prefix(owner) + digest(conversation_of(sent.messages), sent.tools == [])
        with self._lock:
            self._forget(key)
            self._live[key] = Live(sent, arranged)
            self._num_live_characters += _num_characters(sent)
            while len(self._live) > _MAX_CONVERSATIONS or self._num_live_characters > _MAX_CHARACTERS:
                self._forget(next(iter(self._live)))

    def _forget(self, key: bytes) -> None:
        if (live := self._live.pop(key, None)) is not None:
            self._num_live_characters -= _num_characters(live.sent)


def _is_cheaper(riding: Lens, sent: Lens, rates: Rates) -> bool:
    """The conversation is read from the cache, and what is asked is written; else all of it is written."""
    asking = len(text_of(riding.leaves[-1].message) or "")
    before = _num_characters(riding) - asking
    return before * rates.read + asking * rates.write < _num_characters(sent) * rates.write


def _head(lens: Lens) -> list[Message]:
    """What a client's conversations have in common: they should meet on one machine."""
    return lens.messages[: num_head_messages(lens.messages)]


def _prefix(owner: str) -> bytes:
    return digest("owner", owner)


def _entry(sent: Lens, leaf: int | None) -> int | None:
    return None if leaf is None else sent.leaves[leaf].entry


def _fits(lens: Lens, room: int) -> bool:
    """With what the reply takes, and the errors of the estimate."""
    return _num_characters(lens) <= room * _CHARACTERS_PER_TOKEN


def _num_characters(lens: Lens) -> int:
    texts = sum(len(str(message["content"])) for message in lens.messages)
    return texts + sum(len(str(tool)) for tool in lens.tools)
