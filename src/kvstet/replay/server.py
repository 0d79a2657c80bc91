"""A running server, as far as a replay has to know it: whose it is, its model, and which dialects it speaks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import httpx2

from kvstet.dialects.dialect import Dialect, dialect_named
from kvstet.errors import InvalidRequest, ServerGone
from kvstet.replay.asking import get, post
from kvstet.replay.session import Body, Turn
from kvstet.untrusted import mapping_of

Kind = Literal["kvstet", "llama-server", "other"]

READ_SECONDS = 1800.0
"""A long prompt on a slow machine."""
CONNECT_SECONDS = 10.0

_NOT_THERE = frozenset({404, 405, 501})

_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
_ANY_LENGTH = 1 << 24
"""Messages want a limit; the forced reply is shorter."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is, and what it is."""

    url: str
    kind: Kind
    model: str
    dialects: frozenset[str] = frozenset({"chat"})

    @property
    def name(self) -> str:
        """For people."""
        place = self.url.partition("://")[2]
        return place if self.kind == "other" else f"{self.kind} at {place}"

    def spoken(self, turn: Turn) -> Dialect:
        """The request's own dialect, or else Chat Completions."""
        return turn.dialect if turn.dialect.name in self.dialects else dialect_named("chat")

    def body_of(self, turn: Turn, reply: Body | None) -> Body:
        """The request as it is sent here: with a reply to be forced, or for one token. Raises InvalidRequest."""
        dialect = self.spoken(turn)
        body = turn.body if dialect is turn.dialect else chat_body(turn)
        body = {name: value for name, value in body.items() if name not in _LIMITS}
        body |= {"model": self.model, "stream": True, _limit_field(dialect): 1 if reply is None else _ANY_LENGTH}
        if dialect.name == "chat":
            body |= {"stream_options": {"include_usage": True}, "n": 1}
        return body if reply is None else body | {"kvstet_reply": reply}


def chat_body(turn: Turn) -> Body:
    """The request as a chat completion. Raises InvalidRequest."""
    if turn.dialect.name == "chat":
        return turn.body
    return dialect_named("chat").write_request(replace(turn.request, model="")).body


def client_of(url: str, api_key: str | None = None) -> httpx2.Client:
    """For one server; its base URL may end in ``/v1``, as clients want it. InvalidRequest: it is no URL."""
    base = url.rstrip("/").removesuffix("/v1")
    headers = {"authorization": f"Bearer {api_key}", "x-api-key": api_key} if api_key else {}
    timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    # A connection for each request: a server may close one that has rested in a pause just when it is to be used.
    limits = httpx2.Limits(max_keepalive_connections=0)
    try:
        return httpx2.Client(base_url=base, headers=headers, timeout=timeout, trust_env=False, limits=limits)
    except httpx2.InvalidURL as error:
        raise InvalidRequest(f"{url} is no URL: {error}") from error


def found(client: httpx2.Client, model: str | None = None) -> Server:
    """Who answers there. ServerGone: nobody, or nobody who serves a model."""
    url = str(client.base_url).rstrip("/")
    props = mapping_of(get(client, "/props"))
    kind: Kind = "other"
    if props:
        kind = "kvstet" if str(props.get("build_info", "")).startswith("kvstet-") else "llama-server"
    return Server(url, kind, model or _first_model(client, url), _dialects(client, kind))


def _first_model(client: httpx2.Client, url: str) -> str:
    listed = mapping_of(get(client, "/v1/models")).get("data")
    models = cast("list[Any]", listed) if isinstance(listed, list) else []
    name = next((name for model in models if isinstance(name := mapping_of(model).get("id"), str)), None)
    if name is None:
        raise ServerGone(f"The server at {url} lists no models: name one with --model.")
    return name


def _dialects(client: httpx2.Client, kind: Kind) -> frozenset[str]:
    """Those whose endpoints are there: an empty request is refused otherwise than one to nowhere.

    llama-server is asked for chat completions, whose prompts it tells: see `kvstet.replay.bound`.
    """
    match kind:
        case "kvstet":
            return frozenset({"chat", "messages", "responses"})
        case "llama-server":
            return frozenset({"chat"})
        case "other":
            return _spoken(client)


def _spoken(client: httpx2.Client) -> frozenset[str]:
    others = (dialect_named(name) for name in ("messages", "responses"))
    return frozenset({"chat", *(each.name for each in others if post(client, each.path, {})[0] not in _NOT_THERE)})


def _limit_field(dialect: Dialect) -> str:
    return "max_output_tokens" if dialect.name == "responses" else "max_tokens"
