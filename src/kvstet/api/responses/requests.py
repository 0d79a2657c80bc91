"""Bodies of Responses requests. Unknown fields are ignored; null means the default.

Items of the input come as plain objects, since a conversation has them from many places: they are read one by one, with
`read_item`, so that an error says which it is.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from kvstet.api.openai.requests import Count, Penalty, Probability, Scale, Seed, StopString, StopStrings, Window
from kvstet.errors import InvalidRequest

Item = dict[str, Any]
"""One item of an input or output, as the API has it."""

Content = str | list[dict[str, Any]] | None
"""Text, or parts that hold text; `kvstet.chat.messages.text_of` reads it."""

T = TypeVar("T")

_PATH = re.compile(r" - at `\$\.?(.*)`$")


class Reasoning(Struct):
    effort: str | None = None
    summary: str | None = None


class TextFormat(Struct):
    """Only the type and the schema change anything here."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextConfig(Struct):
    format: TextFormat | None = None
    verbosity: str | None = None


class ToolChoice(Struct):
    """One tool by its name, several of which one may be called (``allowed_tools``), or a hosted tool by its type."""

    type: str
    name: str | None = None
    namespace: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None


class ResponsesRequest(Struct, kw_only=True):
    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    include: list[str] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    temperature: Scale | None = None
    top_p: Probability | None = None
    stream: bool | None = None
    store: bool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    max_tool_calls: int | None = None

    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    """These three name what only OpenAI's own server could have; a request that needs them is refused."""

    stop: StopString | StopStrings | None = None
    top_k: Window | None = None
    min_p: Probability | None = None
    repeat_penalty: Scale | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    dry_multiplier: Scale | None = None
    dry_allowed_length: Count | None = None
    seed: Seed | None = None
    cache_prompt: bool | None = None
    """From ``stop`` on: not OpenAI's; as in our chat completions."""


class MessageItem(Struct, kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content = None
    id: str | None = None


class ReasoningItem(Struct, kw_only=True):
    summary: Content = None
    content: Content = None
    encrypted_content: str | None = None
    id: str | None = None


class FunctionCallItem(Struct, kw_only=True):
    name: str
    call_id: str
    arguments: str | None = None
    namespace: str | None = None
    id: str | None = None


class CustomCallItem(Struct, kw_only=True):
    name: str
    call_id: str
    input: str = ""
    namespace: str | None = None
    id: str | None = None


class SearchCallItem(Struct, kw_only=True):
    call_id: str | None = None
    arguments: Any = None
    execution: str | None = None
    id: str | None = None


class SearchOutputItem(Struct, kw_only=True):
    tools: list[dict[str, Any]]
    call_id: str | None = None
    execution: str | None = None
    id: str | None = None


class OutputItem(Struct, kw_only=True):
    """What a function or custom tool gave back."""

    call_id: str
    output: Content = None
    id: str | None = None


class ActionCallItem(Struct, kw_only=True):
    """A call of a tool that the API knows and the client runs: ``local_shell_call`` and its like."""

    call_id: str | None = None
    id: str | None = None
    action: dict[str, Any] | None = None
    operation: dict[str, Any] | None = None


class ActionOutputItem(Struct, kw_only=True):
    call_id: str | None = None
    id: str | None = None
    output: Any = None


class ReferenceItem(Struct, kw_only=True):
    id: str


def read_item(item: object, kind: type[T], where: str) -> T:
    """The item as a ``kind``. InvalidRequest says where it is wrong."""
    try:
        return msgspec.convert(item, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        path = _PATH.search(message)
        place = f"{where}.{path[1]}" if path else where
        raise InvalidRequest(
            f"Invalid '{place}': {message[: path.start()] if path else message}.", param=place
        ) from None
