"""A request in the neutral form, which is that of OpenAI's Chat Completions with a few keys more.

Messages are plain dictionaries:

==============  =======================================================================================================
role            keys besides ``content`` (a string, or a list of parts)
==============  =======================================================================================================
``system``      (the role ``developer`` is read as this one)
``user``
``assistant``   ``reasoning_content``, ``reasoning_details``, ``tool_calls``, ``refusal``
``tool``        ``tool_call_id``, ``is_error`` (only where it is true)
==============  =======================================================================================================

Parts are ``{"type": "text", "text"}``, ``{"type": "image_url", "image_url": {"url", "detail"?}}`` (``data:`` or http),
``{"type": "file", "file": {"file_data" | "file_url", "filename"?}}`` and ``{"type": "tool_reference", "tool_name"}``.
A part, a call or a tool may be marked as the end of a prefix that will come again: ``cache_control``, in Anthropic's
form.

``arguments`` of a call are JSON text as the model wrote it, valid or not.

``reasoning_details`` holds what has to go back to the vendor that gave it, in the form that OpenRouter defined for the
same purpose: a list of ``{"type": "reasoning.text", "text", "signature", "format"}`` (Anthropic's thinking) and
``{"type": "reasoning.encrypted", "data", "id"?, "format"}`` (Anthropic's redacted thinking, OpenAI's encrypted
reasoning). Texts of all details lie in ``reasoning_content`` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

Message = dict[str, Any]
Part = dict[str, Any]
Tool = dict[str, Any]
"""``{"type": "function", "function": {"name", "description"?, "parameters", "strict": True?}}``, and beside
``function``: ``defer_loading``, ``cache_control`` and ``origin`` (see `kvstet.dialects.tools`)."""

CACHE_MARK = "cache_control"

ANTHROPIC_FORMAT = "anthropic-claude-v1"
OPENAI_FORMAT = "openai-responses-v1"
"""Values of ``format`` in ``reasoning_details``: OpenRouter's names for whose reasoning it is."""

Effort = str
"""none, minimal, low, medium, high, xhigh or max; others are passed on as they are."""

NO_REASONING: Effort = "none"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Which tools may or have to be called."""

    mode: Literal["auto", "none", "required"] = "auto"
    names: tuple[str, ...] = ()
    """Only these; empty: any. With ``required`` and one name, that one has to be called."""


@dataclass(frozen=True, slots=True)
class Reasoning:
    """How much the model is to think. With neither set: as much as it sees fit."""

    effort: Effort | None = None
    budget_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How the reply is to be made. None: the client did not say."""

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop: tuple[str, ...] = ()
    tool_choice: ToolChoice | None = None
    allows_parallel_calls: bool | None = None
    reasoning: Reasoning | None = None
    response_format: Mapping[str, Any] | None = None
    """In Chat's form: ``{"type": "json_schema", "json_schema": {"name", "schema", "strict"?}}`` or ``json_object``."""
    verbosity: str | None = None
    is_streamed: bool = False
    includes_usage: bool | None = None
    """Whether a Chat stream is to end with its usage; the other dialects always tell it."""
    user: str | None = None
    session: str | None = None
    """OpenAI's ``prompt_cache_key``: requests that share it share a prefix."""
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a client asks for, in no dialect."""

    model: str = ""
    messages: tuple[Message, ...] = field(repr=False, default=())
    tools: tuple[Tool, ...] = field(repr=False, default=())
    terms: Terms = Terms()
    dropped: tuple[str, ...] = ()
    """What was sent and is not in here, as dotted names, each once."""

    def dropping(self, names: Iterable[str]) -> Request:
        """The same, and these did not survive either."""
        return replace(self, dropped=tuple(dict.fromkeys((*self.dropped, *names))))


@dataclass(frozen=True, slots=True)
class Written:
    """A request in one dialect."""

    body: dict[str, Any] = field(repr=False)
    dropped: tuple[str, ...] = ()
    """What the body could not express, and what had been lost before."""


def unmarked(request: Request) -> Request:
    """Without cache marks, for a provider that refuses fields it does not know."""
    cleared = replace(
        request,
        messages=tuple(map(_unmarked, request.messages)),
        tools=tuple(map(_unmarked, request.tools)),
    )
    return request if cleared == request else cleared.dropping([CACHE_MARK])


def _unmarked(fields: dict[str, Any]) -> dict[str, Any]:
    """Without marks on it, on its parts and on its calls."""
    bare = {name: value for name, value in fields.items() if name != CACHE_MARK}
    for name in ("content", "tool_calls"):
        if isinstance(bare.get(name), list):
            inner = cast("list[dict[str, Any]]", bare[name])
            bare[name] = [{key: value for key, value in part.items() if key != CACHE_MARK} for part in inner]
    return bare
