"""Bodies of Anthropic's requests. Unknown fields are ignored; null means the default; bounds say what is absurd.

A block's ``type`` chooses its Struct, and one that is not here is a 400 that names it. ``cache_control`` is accepted
wherever it stands; within a message it says where to cut (`kvstet.types.Prompt.breakpoints`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Name = Annotated[str, Meta(min_length=1, max_length=256)]
TokenLimit = Annotated[int, Meta(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Meta(max_length=1000)]
ShortText = Annotated[str, Meta(max_length=64)]


class TextBlock(Struct, tag="text"):
    text: str
    cache_control: dict[str, Any] | None = None


class ImageBlock(Struct, tag="image"):
    """Known only to be refused."""


class DocumentBlock(Struct, tag="document"):
    """Known only to be refused."""


class ThinkingBlock(Struct, tag="thinking"):
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(Struct, tag="redacted_thinking"):
    """Another model's thoughts, which nobody here can read."""


class ToolUseBlock(Struct, tag="tool_use"):
    id: str
    name: Name
    input: dict[str, Any]


class ToolReference(Struct, tag="tool_reference"):
    """A tool that was deferred, and may be called from here on."""

    tool_name: Name


class ToolResultBlock(Struct, tag="tool_result"):
    tool_use_id: str
    content: str | list[TextBlock | ToolReference | ImageBlock | DocumentBlock] | None = None
    is_error: bool | None = None


class Tool(Struct, kw_only=True):
    name: str = ""
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    defer_loading: bool | None = None


class NamedTool(Struct, tag="tool_reference"):
    """A tool of the request, named by a system message."""

    name: Name


class DefinedTool(Struct, tag="tool_definition"):
    """A tool that a system message brings along."""

    definition: Tool


class ToolAdditionBlock(Struct, tag="tool_addition"):
    tool: NamedTool | DefinedTool


class ToolRemovalBlock(Struct, tag="tool_removal"):
    tool: NamedTool


Block = (
    TextBlock
    | ImageBlock
    | DocumentBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ToolAdditionBlock
    | ToolRemovalBlock
)


class Turn(Struct):
    """One of the request's messages."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ToolChoice(Struct):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: TokenLimit | None = None
    display: ShortText | None = None


class OutputFormat(Struct):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct):
    effort: ShortText | None = None
    format: OutputFormat | None = None


class CountRequest(Struct, kw_only=True):
    """The part of a request that makes the prompt."""

    model: str | None = None
    system: str | list[TextBlock] | None = None
    messages: Annotated[list[Turn], Meta(min_length=1)]
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """Where ``output_config.format`` stood before."""
    context_management: dict[str, Any] | None = None


class MessagesRequest(CountRequest, kw_only=True):
    max_tokens: TokenLimit
    stream: bool | None = None
    stop_sequences: Annotated[list[StopString], Meta(max_length=64)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
