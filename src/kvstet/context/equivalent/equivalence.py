"""A conversation, said so that it begins as it did before.

No session ids are needed. A walk over the messages keeps a digest of what stands before each of them, as the model will
read it; what was done at a place is remembered under the digest that led there, and done again whenever a conversation
comes by. So a fork keeps what it has in common with the conversation that it left, and a conversation that only grows
is never changed in what was sent before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import cast

from kvstet.context.equivalent.catalogue import SENTENCES
from kvstet.context.equivalent.changes import skeleton, without_reminders
from kvstet.context.equivalent.kept import is_shortened
from kvstet.context.equivalent.pins import Names, Pin, Update, is_of_the_moment, pin, update_of
from kvstet.context.memory import Draft, Memory, Recollection, Store, digest
from kvstet.context.message import (
    Message,
    arguments_of,
    calls_of,
    num_head_messages,
    role_of,
    text_of,
    with_more,
    with_text,
)
from kvstet.context.order import Tool, as_first_written, ordered
from kvstet.types import HEAD_ROLES, Substitution, SubstitutionName

_MAX_HEADS = 4
"""System prompts that one conversation may go back and forth between."""

DROPPED: frozenset[SubstitutionName] = frozenset({"reasoning", "tool-output"})
"""What needs room that the client's own prompt does not."""

_GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Equivalent:
    """A conversation as the model is to read it. Messages have the places in which they were sent."""

    messages: list[Message]
    tools: list[Tool]
    substitutions: tuple[Substitution, ...] = ()
    names: frozenset[SubstitutionName] = frozenset()
    """What may be substituted by now."""

    @property
    def keeps_reasoning(self) -> bool:
        return "reasoning" in self.names


class Equivalence:
    """Remembers conversations of one model, in memory, and says them so that they go on as they began; thread-safe."""

    def __init__(self, store: Store | None = None, lock: Lock | None = None) -> None:
        self._store = store or Memory()
        self._lock = lock or Lock()

    def __repr__(self) -> str:
        return f"Equivalence({self._store!r})"

    def draft(self) -> Equivalence:
        """Remembers the same, and what it learns beside is forgotten with it: to ask what would be said."""
        return Equivalence(Draft(self._store), self._lock)

    def follow(self, messages: Sequence[Message], tools: Sequence[Tool], *, owner: str, names: Names) -> Equivalent:
        """The conversation, with nothing but ``names`` substituted. Never raises: what is no message stays as it is.

        ``owner`` is the name of the API key: nothing that one has sent is ever said to another.
        """
        with self._lock:
            return _walk(messages, tools, owner, names, self._store)

    def give_up(self, messages: Sequence[Message], *, owner: str) -> None:
        """There is no room any more to keep what this conversation has dropped, and it stays so."""
        with self._lock:
            Recollection(self._store, owner, conversation_of(messages)).keep(_GIVEN_UP, b"", _GIVEN_UP)

    def forget(self, messages: Sequence[Message], *, owner: str) -> None:
        """All that is remembered of this conversation and, where its beginning is not known, of all of the owner's.

        What the owner's conversations have in common, such as the system prompt, is forgotten in any case.
        """
        with self._lock:
            conversation = conversation_of(messages)
            meant = {b"", conversation}
            known = Recollection(self._store, owner, conversation).get(_KNOWN)
            self._store.forget(lambda key: key.owner == owner and (known is None or key.conversation in meant))


_KNOWN = "known"


def conversation_of(messages: Sequence[Message]) -> bytes:
    """What all requests of a conversation have in common, whatever becomes of its system prompt: how the user began."""
    texts = (without_reminders(text_of(message) or "") for message in messages if role_of(message) == "user")
    first = next((text for text in texts if text), None)
    if first is not None:
        return digest("user", first)
    rest = messages[num_head_messages(messages) :]
    return digest("other", text_of(rest[0]) if rest else None)


def _walk(messages: Sequence[Message], tools: Sequence[Tool], owner: str, names: Names, store: Store) -> Equivalent:
    recollection = Recollection(store, owner, conversation_of(messages))
    if recollection.get(_GIVEN_UP):
        names = names - DROPPED
    recollection.keep(_KNOWN, b"", _KNOWN)
    walk = _Walk(recollection, frozenset(names), num_head_messages(messages))
    try:
        return walk.whole(messages, tools)
    except (RecursionError, ValueError):
        # Nested too deeply, or numbers of thousands of digits: whether it can be rendered is for the template to say.
        return Equivalent(list(messages), list(tools))


class _Walk:
    """One pass over a conversation."""

    def __init__(self, recollection: Recollection, names: frozenset[SubstitutionName], num_head: int) -> None:
        self._recollection = recollection
        self._names = names
        self._num_head = num_head
        self._chain = b""
        """Digest of what the model will read before the next message."""
        self._pins: dict[int, Pin] = {}
        self._substitutions: list[Substitution] = []

    def whole(self, messages: Sequence[Message], tools: Sequence[Tool]) -> Equivalent:
        tools = self._tools(tools)
        said: list[Message] = []
        for index, message in enumerate(messages):
            said.append(self._message(index, message))
            while update := self._told_here():
                said[index] = self._tell(index, said[index], update)
        if said:
            said[-1] = self._news(len(said) - 1, said[-1])
        return Equivalent(said, list(tools), tuple(self._substitutions), self._names)

    def _tools(self, tools: Sequence[Tool]) -> Sequence[Tool]:
        if tools and "tool-order" in self._names:
            sorted_tools = ordered(tools, self._recollection)
            if sorted_tools != list(tools):
                self._note("tool-order", None, "the tools stand in the order in which they were first sent")
            tools = sorted_tools
        self._chain = digest("tools", list(tools))
        return tools

    def _message(self, index: int, message: Message) -> Message:
        role, text = role_of(message), text_of(message)
        if text is None or (role == "assistant" and calls_of(message) is None):
            self._chain = digest(self._chain, message)
            return message
        if role == "assistant":
            return self._reply(index, message, text)
        if role in HEAD_ROLES:
            message = self._instructions(index, message, text)
        elif role == "tool":
            message = self._output(index, message, text)
        elif role == "user":
            message = self._with_reminders(index, message, text, digest(self._chain, role, without_reminders(text)))
        self._chain = digest(self._chain, role, text_of(message))
        return message

    def _instructions(self, index: int, message: Message, text: str) -> Message:
        first = self._first_instructions(index, text)
        return self._pinned(index, message, text, first, "system-lines")

    def _first_instructions(self, index: int, text: str) -> str:
        """The text in whose place this one stands, or itself."""
        place, bare = digest(self._chain, index), skeleton(text)
        shared = self._recollection if index >= self._num_head else self._recollection.of_all
        known = cast("tuple[str, ...]", self._recollection.get("heads", place) or ())
        first = text if text in known else next((each for each in known if self._is_same(each, text, bare)), None)
        if first is None:
            same = cast("str | None", shared.get("first", digest(place, bare)))
            first = text if same is None or not self._is_same(same, text, bare) else same
        if first not in known:
            shared.keep("first", digest(place, bare), first, len(first))
            known = (*known, first)[-_MAX_HEADS:]
            self._recollection.keep("heads", place, known, sum(map(len, known)))
        return first

    def _is_same(self, known: str, text: str, bare: str) -> bool:
        return is_of_the_moment(known, text, "system-lines", is_announced=skeleton(known) == bare)

    def _with_reminders(self, index: int, message: Message, text: str, place: bytes) -> Message:
        """A message of which all but the reminders is known by its place."""
        first = cast("str | None", self._recollection.get("first", place))
        if first is None or not _are_reminders_of_one(first, text):
            self._recollection.keep("first", place, text, len(text))
            return message
        return self._pinned(index, message, text, first, "reminder")

    def _output(self, index: int, message: Message, text: str) -> Message:
        place = digest(self._chain, str(message.get("tool_call_id")))
        original = cast("str | None", self._recollection.get("output", place))
        if original is None:
            self._recollection.keep("output", place, text, len(text))
        if original is None or original == text:
            return message
        if _are_reminders_of_one(original, text):
            return self._pinned(index, message, text, original, "reminder")
        if not is_shortened(original, text):
            self._recollection.keep("output", place, text, len(text))
        elif "tool-output" in self._names:
            self._note("tool-output", index, "the tool's output stays as it was first sent")
            return with_text(message, original)
        return message

    def _reply(self, index: int, message: Message, text: str) -> Message:
        calls = [(str(function.get("name")), arguments_of(function)) for function in calls_of(message) or ()]
        meaning = digest(self._chain, "assistant", text.strip(), calls)
        if calls and "arguments" in self._names:
            written = as_first_written(message, meaning, self._recollection)
            if written is not message:
                self._note("arguments", index, "the arguments stay as they were first written")
            message = written
        self._chain = meaning
        return message

    def _pinned(self, index: int, message: Message, text: str, first: str, other: SubstitutionName) -> Message:
        pinned, changes = pin(index, first, text, other, self._names)
        self._pins[index] = pinned
        for name in _in_order(name for change in changes for name in change.names):
            self._note(name, index, f"the {_WORDS[name]} as first sent")
        return message if pinned.text == text else with_text(message, pinned.text)

    def _told_here(self) -> Update | None:
        update = cast("Update | None", self._recollection.get("update", self._chain))
        return update if update is not None and update.names <= self._names else None

    def _tell(self, index: int, message: Message, update: Update) -> Message:
        for place, told in update.told:
            if place in self._pins:
                self._pins[place] = replace(self._pins[place], told=told)
        for name in _in_order(update.names):
            self._note(name, index, "what has changed is told here")
        self._chain = digest(self._chain, "update", update.text)
        return with_more(message, update.text)

    def _news(self, index: int, message: Message) -> Message:
        """The last message, with what has changed in the texts that stay as they were."""
        role = role_of(message)
        if index < self._num_head or role == "assistant" or text_of(message) is None:
            return message
        update = update_of(self._pins.values(), self._names, is_turn_of_user=role == "user")
        if update is None:
            return message
        self._recollection.keep("update", self._chain, update, update.num_characters)
        return self._tell(index, message, update)

    def _note(self, name: SubstitutionName, index: int | None, what: str) -> None:
        self._substitutions.append(Substitution(name, index, what))


def _in_order(names: Iterable[SubstitutionName]) -> list[SubstitutionName]:
    found = set(names)
    return [name for name in SENTENCES if name in found]


def _are_reminders_of_one(first: str, sent: str) -> bool:
    """Whether two texts differ in nothing but what a client has put into them, and not much in that."""
    own = without_reminders(first)
    has_reminders = own != first.strip() or own != sent.strip()
    is_same = own == without_reminders(sent)
    return is_same and has_reminders and is_of_the_moment(first, sent, "reminder", is_announced=True)


_WORDS: dict[SubstitutionName, str] = {
    "clock": "time stands",
    "date": "date stands",
    "git-status": "git status stands",
    "request-id": "request's id stands",
    "billing-header": "billing header stands",
    "counter": "count stands",
    "system-lines": "changed lines stand",
    "reminder": "reminders stand",
}
