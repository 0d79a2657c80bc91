"""How many tokens a request has; the same for all servers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

import httpx2
import msgspec
import numpy as np

from kvstet.bench.steps import Body
from kvstet.errors import ServerGone
from kvstet.types import Tokens

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the template makes of a request."""

    text: str = field(repr=False)
    tokens: Tokens = field(repr=False)


class Yardstick:
    """Asks a kvstet server, which need not be the measured one; nothing is computed or cached by asking."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def prompt(self, body: Body) -> Prompt:
        """Of a chat completion. ServerGone: there is no answer, or a refusal."""
        rendered = await self._post("/apply-template", body, _Rendered)
        return Prompt(rendered.prompt, await self.tokens(rendered.prompt, add_special=True))

    async def tokens(self, text: str, *, add_special: bool = False) -> Tokens:
        told = await self._post("/tokenize", {"content": text, "add_special": add_special}, _Tokenized)
        return np.asarray(told.tokens, np.int32)

    async def _post(self, path: str, body: Body, kind: type[T]) -> T:
        try:
            answer = await self._client.post(path, json=body)
            return msgspec.json.decode(answer.raise_for_status().content, type=kind)
        except (httpx2.HTTPError, msgspec.MsgspecError) as error:
            raise ServerGone(f"kvstet does not count tokens: {error}") from error


class _Rendered(msgspec.Struct):
    prompt: str


class _Tokenized(msgspec.Struct):
    tokens: list[int]
