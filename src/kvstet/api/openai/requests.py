"""Bodies of OpenAI's requests. Unknown fields are ignored; null means the default; bounds say what is absurd."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-100, le=100)]
Scale = Annotated[float, Meta(ge=0, le=100)]
Window = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
TokenLimit = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
StopString = Annotated[str, Meta(max_length=1000)]
StopStrings = Annotated[list[StopString], Meta(max_length=64)]
BiasEntry = tuple[int | str, float | bool]


ToolChoice = Literal["auto", "none", "required"]


class NamedFunction(Struct):
    name: str


class NamedTool(Struct):
    function: NamedFunction


class AllowedTools(Struct):
    tools: Annotated[list[NamedTool], Meta(min_length=1)]
    mode: Literal["auto", "required"] = "auto"


class ChosenTools(Struct):
    """The one tool that is to be called, or all that may be."""

    type: Literal["function", "allowed_tools"] = "function"
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class StreamOptions(Struct):
    include_usage: bool | None = None


class NamedSchema(Struct):
    """OpenAI's wrapper around a schema; its ``name`` and ``strict`` change nothing here."""

    schema: dict[str, Any] | None = None


class ResponseFormat(Struct):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema: dict[str, Any] | None = None
    """llama-server's: the schema itself, with either JSON type."""


class GenerationFields(Struct, kw_only=True):
    """What both kinds of completion take."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=64)] | None = None
    stop: StopString | StopStrings | None = None
    max_tokens: TokenLimit | None = None
    n_predict: TokenLimit | None = None
    temperature: Scale | None = None
    top_k: Window | None = None
    top_p: Probability | None = None
    min_p: Probability | None = None
    typical_p: Probability | None = None
    repeat_penalty: Scale | None = None
    repeat_last_n: Window | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    dry_multiplier: Scale | None = None
    dry_base: Scale | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: Window | None = None
    dry_sequence_breakers: StopStrings | None = None
    xtc_probability: Probability | None = None
    xtc_threshold: Probability | None = None
    seed: Seed | None = None
    logit_bias: dict[str, float | bool] | list[BiasEntry] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool | None = None
    cache_prompt: bool | None = None


class ChatRequest(GenerationFields, kw_only=True):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | ChosenTools | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: TokenLimit | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(GenerationFields, kw_only=True):
    prompt: str | list[str | int | list[int]]
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class TemplateRequest(Struct, kw_only=True):
    """The part of a chat request that makes the prompt."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: ToolChoice | ChosenTools | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None


class TokenizeRequest(Struct, kw_only=True):
    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeRequest(Struct, kw_only=True):
    tokens: list[int]
