"""Usage as each vendor tells it. Unknown stays unknown, and nonsense is unknown."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstet.providers.usage import usage_of
from kvstet.types import Usage


def usage(given: int | None, read: int | None, write: int | None, output: int | None, **more: int) -> Usage:
    return Usage(
        num_input_tokens=given,
        num_cache_read_tokens=read,
        num_cache_write_tokens=write,
        num_output_tokens=output,
        **more,
    )


CHAT = {"prompt_tokens": 100, "completion_tokens": 9}

CASES: list[tuple[str, dict[str, Any], Usage]] = [
    (
        "OpenAI Chat",
        {"usage": {**CHAT, "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 36}}},
        usage(100, 64, 36, 9),
    ),
    (
        "OpenAI Chat, nothing cached",
        {"usage": {**CHAT, "prompt_tokens_details": {"cached_tokens": 0}}},
        usage(100, 0, None, 9),
    ),
    (
        "OpenAI Responses",
        {
            "usage": {
                "input_tokens": 100,
                "input_tokens_details": {
                    "cached_tokens": 60,
                    "cache_write_tokens": 30,
                    "cache_write_tokens_details": {"ttl_12h_tokens": 10, "ttl_30m_tokens": 20},
                },
                "output_tokens": 9,
                "output_tokens_details": {"reasoning_tokens": 4},
            }
        },
        usage(100, 60, 30, 9, num_long_cache_write_tokens=10, num_reasoning_tokens=4),
    ),
    (
        "OpenAI Responses, the last event of a stream",
        {"type": "response.completed", "response": {"usage": {"input_tokens": 5, "output_tokens": 2}}},
        usage(5, None, None, 2),
    ),
    (
        "Anthropic: input_tokens excludes what was read and written",
        {
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 70,
                "cache_creation_input_tokens": 20,
                "cache_creation": {"ephemeral_1h_input_tokens": 15, "ephemeral_5m_input_tokens": 5},
                "output_tokens": 9,
            }
        },
        usage(100, 70, 20, 9, num_long_cache_write_tokens=15),
    ),
    (
        "Anthropic, the first event of a stream",
        {
            "type": "message_start",
            "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 7, "output_tokens": 1}},
        },
        usage(10, 7, None, 1),
    ),
    (
        "Gemini",
        {
            "usageMetadata": {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 64,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 4,
            }
        },
        usage(100, 64, None, 9, num_reasoning_tokens=4),
    ),
    (
        "DeepSeek",
        {"usage": {**CHAT, "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36}},
        usage(100, 64, None, 9),
    ),
    (
        "Bedrock Converse",
        {"usage": {"inputTokens": 10, "cacheReadInputTokens": 70, "cacheWriteInputTokens": 20, "outputTokens": 9}},
        usage(100, 70, 20, 9),
    ),
    (
        "Ollama",
        {"prompt_eval_count": 100, "prompt_eval_cached_count": 64, "eval_count": 9},
        usage(100, 64, None, 9),
    ),
    ("Ollama before August 2026", {"prompt_eval_count": 36, "eval_count": 9}, usage(36, None, None, 9)),
    ("llama.cpp's timings", {"timings": {"cache_n": 64, "prompt_n": 36, "predicted_n": 9}}, usage(100, 64, None, 9)),
    (
        "llama.cpp's usage and timings",
        {"usage": CHAT, "timings": {"cache_n": 64, "prompt_n": 36}},
        usage(100, 64, None, 9),
    ),
    ("Moonshot", {"usage": {**CHAT, "cached_tokens": 64}}, usage(100, 64, None, 9)),
    (
        "xAI, all of it cached",
        {"usage": {**CHAT, "prompt_tokens_details": {"text_tokens": 100, "cached_tokens": 100}}},
        usage(100, 100, None, 9),
    ),
    (
        "vLLM without --enable-prompt-tokens-details",
        {"usage": {**CHAT, "prompt_tokens_details": None}},
        usage(100, None, None, 9),
    ),
    (
        "Qwen, explicit",
        {"usage": {**CHAT, "prompt_tokens_details": {"cached_tokens": 0, "cache_creation_input_tokens": 90}}},
        usage(100, 0, 90, 9),
    ),
    ("the usage object alone", {**CHAT, "prompt_tokens_details": {"cached_tokens": 64}}, usage(100, 64, None, 9)),
    ("a reply without usage", {"id": "x", "choices": []}, Usage()),
]


@pytest.mark.parametrize(("payload", "expected"), [pytest.param(body, each, id=name) for name, body, each in CASES])
def test_each_dialect_is_read(payload: dict[str, Any], expected: Usage) -> None:
    assert usage_of(payload) == expected


def test_fireworks_tells_in_a_header() -> None:
    told = usage_of({"usage": CHAT}, {"Fireworks-Cached-Prompt-Tokens": "64", "fireworks-prompt-tokens": "100"})
    assert told == usage(100, 64, None, 9)


@pytest.mark.parametrize("value", ["64", "-1", "", "1e3", "٣", "9" * 5000, "101"])
def test_a_header_that_is_no_number_of_tokens_tells_nothing(value: str) -> None:
    read = usage_of({"usage": CHAT}, {"fireworks-cached-prompt-tokens": value}).num_cache_read_tokens
    assert read == (64 if value == "64" else None)


@pytest.mark.parametrize("value", [-1, "64", True, 1.5, math.nan, math.inf, 10**30, None, [], {}, {"a": 1}])
def test_nonsense_is_not_a_number_of_tokens(value: object) -> None:
    assert usage_of({"usage": {"prompt_tokens": value, "completion_tokens": value}}) == Usage()
    told = usage_of({"usage": {**CHAT, "prompt_tokens_details": {"cached_tokens": value}}})
    assert told == usage(100, None, None, 9)


def test_more_read_than_sent_is_not_believed_and_the_rest_is() -> None:
    told = usage_of({"usage": {**CHAT, "prompt_tokens_details": {"cached_tokens": 101}}})
    assert told == usage(100, None, None, 9)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                [
                    "usage",
                    "usageMetadata",
                    "message",
                    "response",
                    "timings",
                    "prompt_tokens",
                    "input_tokens",
                    "cache_read_input_tokens",
                    "inputTokens",
                    "prompt_tokens_details",
                    "cached_tokens",
                    "prompt_eval_count",
                    "cache_n",
                    "prompt_n",
                    "promptTokenCount",
                ]
            ),
            inner,
        )
    ),
    max_leaves=20,
)


@given(json)
def test_nothing_raises_and_no_number_contradicts_another(payload: object) -> None:
    told = usage_of(payload)
    assert told.num_fresh_tokens is None or told.num_fresh_tokens >= 0
    assert all(number is None or number >= 0 for number in (told.num_input_tokens, told.num_output_tokens))
