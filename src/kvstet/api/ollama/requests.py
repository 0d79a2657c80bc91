"""Bodies of Ollama's requests. Unknown fields are ignored; null means the default; bounds say what is absurd.

``keep_alive`` and the options that say how to load a model (``num_ctx`` and such) are among the unknown fields: the
server was told so when it was started.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from kvstet.api.openai.requests import Penalty, Probability, Scale, Seed, StopString, StopStrings, Window

Name = Annotated[str, Meta(min_length=1, max_length=256)]
NumPredict = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
Effort = Annotated[str, Meta(max_length=64)]


class Options(Struct, kw_only=True):
    """How tokens are chosen, and how many."""

    num_predict: NumPredict | None = None
    """No more than this; 0 and less: no limit."""
    temperature: Scale | None = None
    top_k: Window | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    typical_p: Probability | None = None
    repeat_penalty: Scale | None = None
    repeat_last_n: Window | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Seed | None = None
    stop: StopString | StopStrings | None = None


class CalledFunction(Struct):
    name: Name
    arguments: dict[str, Any] | None = None


class ToolCall(Struct):
    function: CalledFunction
    id: str | None = None


class ChatMessage(Struct):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    """Known only to be refused."""
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class Function(Struct):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Struct):
    function: Function
    type: str | None = None


class GenerationFields(Struct, kw_only=True):
    """What both endpoints take that generate."""

    model: str | None = None
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    """``json``, or a JSON schema."""
    options: Options | None = None
    think: bool | Effort | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None


class ChatRequest(GenerationFields, kw_only=True):
    messages: list[ChatMessage] = field(default_factory=list[ChatMessage])
    """None: the model is to be loaded."""
    tools: list[Tool] | None = None


class GenerateRequest(GenerationFields, kw_only=True):
    prompt: str | None = None
    """None, or an empty one: the model is to be loaded."""
    system: str | None = None
    template: str | None = None
    """Ignored: it is in the language of Go, and the model has a template of its own."""
    raw: bool | None = None
    suffix: str | None = None
    images: list[Any] | None = None
    context: list[Any] | None = None


class ShowRequest(Struct, kw_only=True):
    model: str | None = None
    name: str | None = None
    """What ``model`` was called before."""
