"""The least that an exact cache of prefixes could have computed: what stands behind all that a server was sent in this
replay, or has said itself.

Two tokens are never free: the prompt's last one, which gives the next one, and the last one of a reply, which no server
computes before it comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import httpx2
import msgspec
import numpy as np

from kvstet.cache.tree import num_equal
from kvstet.replay.asking import post
from kvstet.replay.server import Server, chat_body
from kvstet.replay.session import Body, Turn
from kvstet.types import Tokens

T = TypeVar("T")

_NO_TOKENS: Tokens = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """A request in the server's own tokens."""

    prompt: Tokens = field(repr=False)
    reply: Tokens = field(repr=False, default_factory=_NO_TOKENS.copy)
    """That it is made to say."""

    @property
    def computed(self) -> Tokens:
        """What the server has computed when the reply is over."""
        return np.concatenate([self.prompt, self.reply[:-1]])


class Reader(Protocol):
    """How a server is asked for its tokens."""

    def read(self, turn: Turn, body: Body) -> Sequence[Said]:
        """What it may make of a body; none where it does not tell. Raises ServerGone."""
        ...


@dataclass(frozen=True, slots=True)
class PlanReader:
    """kvstet tells of a request in any dialect what it would be, down to the reply that is forced."""

    client: httpx2.Client = field(repr=False)

    def read(self, turn: Turn, body: Body) -> Sequence[Said]:
        path = f"/v1/kvstet/plan?dialect={turn.dialect.name}&tokens=true"
        told = _told(self.client, path, body, _Planned)
        return [] if told is None else [Said(_array(told.tokens), _array(told.reply_tokens))]


@dataclass(frozen=True, slots=True)
class TemplateReader:
    """llama-server tells the text of a prompt, and the tokens of a text, but not whether it adds any around it."""

    client: httpx2.Client = field(repr=False)

    def read(self, turn: Turn, body: Body) -> Sequence[Said]:
        rendered = _told(self.client, "/apply-template", chat_body(turn), _Rendered)
        if rendered is None:
            return []
        contents = ({"content": rendered.prompt, "add_special": adds, "parse_special": True} for adds in (True, False))
        told = [_told(self.client, "/tokenize", content, _Tokenized) for content in contents]
        return [Said(_array(each.tokens)) for each in told if each is not None]


class SilentReader:
    """Other servers tell no tokens."""

    def read(self, turn: Turn, body: Body) -> Sequence[Said]:
        return []


class Known:
    """Beginnings of prompts that one server has computed."""

    def __init__(self) -> None:
        self._computed: list[Tokens] = []

    def __repr__(self) -> str:
        return f"Known({len(self._computed)} beginnings)"

    def num_bound_tokens(self, prompt: Tokens) -> int:
        """What is left of a prompt behind the longest beginning that is known; at least its last token, since that must
        give the next one."""
        num_known = max((num_equal(prompt, before) for before in self._computed), default=0)
        return max(1, len(prompt) - num_known)

    def add(self, computed: Tokens) -> None:
        self._computed.append(computed)


class Bound:
    """Of one server; remembers all that it was sent."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._next: Sequence[Said] = ()
        self._known = Known()

    def __repr__(self) -> str:
        return f"Bound({self._known!r}, {self._reader!r})"

    def look(self, turn: Turn, body: Body) -> None:
        """At a request that is about to be sent; what is told of it may be otherwise once it is answered."""
        self._next = self._reader.read(turn, body)

    def num_tokens(self, num_prompt_tokens: int | None) -> int | None:
        """Of that request, which was answered now, and had so many tokens; None: that is not what was told before."""
        said = next((each for each in self._next if len(each.prompt) == num_prompt_tokens), None)
        if said is None:
            return None
        num_tokens = self._known.num_bound_tokens(said.prompt)
        self._known.add(said.computed)
        return num_tokens


def bound_of(server: Server, client: httpx2.Client) -> Bound:
    match server.kind:
        case "kvstet":
            return Bound(PlanReader(client))
        case "llama-server":
            return Bound(TemplateReader(client))
        case "other":
            return Bound(SilentReader())


class _Planned(msgspec.Struct):
    tokens: list[int]
    reply_tokens: list[int]


class _Rendered(msgspec.Struct):
    prompt: str


class _Tokenized(msgspec.Struct):
    tokens: list[int]


def _array(tokens: Sequence[int]) -> Tokens:
    return np.array(tokens, np.int32)


def _told(client: httpx2.Client, path: str, body: Body, kind: type[T]) -> T | None:
    """None: it is refused, or something else."""
    status, told = post(client, path, body)
    try:
        return msgspec.convert(told, kind) if status < 300 else None
    except msgspec.ValidationError:
        return None
