"""What a reply says that it took, in any vendor's words.

Nothing is guessed: what is not told stays None, and a number that cannot be right (below zero, not whole, more read
from a cache than was sent) is as if it were not told. Nothing raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kvstet.types import Usage
from kvstet.untrusted import mapping_of

MAX_TOKENS = 2**40
"""More than this is nonsense."""

_DIGITS = re.compile(r"[0-9]{1,15}")

_FIREWORKS_READ = "fireworks-cached-prompt-tokens"
_FIREWORKS_INPUT = "fireworks-prompt-tokens"

Fields = Mapping[str, Any]


def usage_of(payload: object, headers: Mapping[str, str] | None = None) -> Usage:
    """Of a reply's JSON, or of its usage object alone; the headers know what Fireworks does not write into it."""
    whole = mapping_of(payload)
    told = _object(whole)
    reader = next((read for is_its, read in _DIALECTS if is_its(told)), _openai)
    return _sound(_with_timings(_with_headers(reader(told), headers or {}), whole))


def _object(whole: Fields) -> Fields:
    """Where a reply keeps its numbers; a stream's last event wraps the reply once more."""
    inner = mapping_of(whole.get("response")) or mapping_of(whole.get("message"))
    for fields in (whole, inner):
        for name in ("usage", "usageMetadata", "usage_metadata"):
            if isinstance(fields.get(name), Mapping):
                return mapping_of(fields[name])
    return whole


def _anthropic(told: Fields) -> Usage:
    """``input_tokens`` leaves out what was read and what was written."""
    read, write = _count(told, "cache_read_input_tokens"), _count(told, "cache_creation_input_tokens")
    return Usage(
        num_input_tokens=_sum(_count(told, "input_tokens"), read, write),
        num_cache_read_tokens=read,
        num_cache_write_tokens=write,
        num_long_cache_write_tokens=_count(mapping_of(told.get("cache_creation")), "ephemeral_1h_input_tokens"),
        num_output_tokens=_count(told, "output_tokens"),
        num_reasoning_tokens=_count(mapping_of(told.get("output_tokens_details")), "thinking_tokens"),
    )


def _bedrock(told: Fields) -> Usage:
    """``inputTokens`` leaves out both as well."""
    read = _count(told, "cacheReadInputTokens", "cacheReadInputTokenCount")
    write = _count(told, "cacheWriteInputTokens", "cacheWriteInputTokenCount")
    return Usage(
        num_input_tokens=_sum(_count(told, "inputTokens"), read, write),
        num_cache_read_tokens=read,
        num_cache_write_tokens=write,
        num_output_tokens=_count(told, "outputTokens"),
    )


def _gemini(told: Fields) -> Usage:
    """Thoughts are no part of the candidates, and no cached content is told by leaving the field out."""
    thoughts = _count(told, "thoughtsTokenCount")
    output = _count(told, "candidatesTokenCount")
    return Usage(
        num_input_tokens=_sum(_count(told, "promptTokenCount"), _count(told, "toolUsePromptTokenCount")),
        num_cache_read_tokens=_count(told, "cachedContentTokenCount"),
        num_output_tokens=_sum(output, thoughts) if output is not None else thoughts,
        num_reasoning_tokens=thoughts,
    )


def _ollama(told: Fields) -> Usage:
    """Where the cached tokens are told, they are part of the count; where not, it may be only what was computed."""
    return Usage(
        num_input_tokens=_count(told, "prompt_eval_count"),
        num_cache_read_tokens=_count(told, "prompt_eval_cached_count"),
        num_output_tokens=_count(told, "eval_count"),
    )


def _openai(told: Fields) -> Usage:
    """Chat and Responses, and who speaks likewise: DeepSeek, Moonshot, xAI, Mistral, vLLM."""
    given = mapping_of(told.get("prompt_tokens_details") or told.get("input_tokens_details"))
    made = mapping_of(told.get("completion_tokens_details") or told.get("output_tokens_details"))
    read = _first(
        _count(given, "cached_tokens"), _count(told, "prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens")
    )
    missed = _count(told, "prompt_cache_miss_tokens")
    both = None if read is None or missed is None else read + missed
    return Usage(
        num_input_tokens=_first(_count(told, "prompt_tokens", "input_tokens"), both),
        num_cache_read_tokens=read,
        num_cache_write_tokens=_count(given, "cache_write_tokens", "cache_creation_input_tokens"),
        num_long_cache_write_tokens=_count(mapping_of(given.get("cache_write_tokens_details")), "ttl_12h_tokens"),
        num_output_tokens=_count(told, "completion_tokens", "output_tokens"),
        num_reasoning_tokens=_count(made, "reasoning_tokens"),
    )


def _has(*names: str) -> Callable[[Fields], bool]:
    return lambda told: any(name in told for name in names)


_DIALECTS: tuple[tuple[Callable[[Fields], bool], Callable[[Fields], Usage]], ...] = (
    (_has("cache_read_input_tokens", "cache_creation_input_tokens", "cache_creation"), _anthropic),
    (_has("inputTokens", "cacheReadInputTokens"), _bedrock),
    (_has("promptTokenCount", "candidatesTokenCount"), _gemini),
    (_has("prompt_eval_count", "eval_count"), _ollama),
)
"""How each dialect is known, and read; all others are like OpenAI's."""


def _with_headers(usage: Usage, headers: Mapping[str, str]) -> Usage:
    told = {name.lower(): value for name, value in headers.items()}
    read, given = (_written(told.get(name)) for name in (_FIREWORKS_READ, _FIREWORKS_INPUT))
    return _completed(usage, given, read)


def _with_timings(usage: Usage, whole: Fields) -> Usage:
    """llama.cpp's: ``prompt_n`` tokens were computed, ``cache_n`` were not."""
    timings = mapping_of(whole.get("timings"))
    read, computed = _count(timings, "cache_n"), _count(timings, "prompt_n")
    given = read + computed if read is not None and computed is not None else None
    usage = _completed(usage, given, read)
    return replace(usage, num_output_tokens=_first(usage.num_output_tokens, _count(timings, "predicted_n")))


def _completed(usage: Usage, given: int | None, read: int | None) -> Usage:
    return replace(
        usage,
        num_input_tokens=_first(usage.num_input_tokens, given),
        num_cache_read_tokens=_first(usage.num_cache_read_tokens, read),
    )


def _sound(usage: Usage) -> Usage:
    """Without what contradicts itself."""
    read, write, given = usage.num_cache_read_tokens, usage.num_cache_write_tokens, usage.num_input_tokens
    if given is not None and (read or 0) + (write or 0) > given:
        usage = replace(
            usage, num_cache_read_tokens=None, num_cache_write_tokens=None, num_long_cache_write_tokens=None
        )
    if (usage.num_long_cache_write_tokens or 0) > (usage.num_cache_write_tokens or 0):
        usage = replace(usage, num_long_cache_write_tokens=None)
    output = usage.num_output_tokens
    if output is not None and (usage.num_reasoning_tokens or 0) > output:
        usage = replace(usage, num_reasoning_tokens=None)
    return usage


def _count(fields: Fields, *names: str) -> int | None:
    """The first of these that is a number of tokens."""
    return _first(*(_number(fields.get(name)) for name in names))


def _number(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= MAX_TOKENS and value == int(value) else None


def _written(value: object) -> int | None:
    """Of a header."""
    return _number(int(value)) if isinstance(value, str) and _DIGITS.fullmatch(value) else None


def _sum(first: int | None, *more: int | None) -> int | None:
    """None where the first is not known."""
    return None if first is None else first + sum(each or 0 for each in more)


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
