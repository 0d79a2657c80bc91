"""What a reply took, written in each dialect's words; `kvstet.providers.usage` reads them.

What was not told is not written as 0, as far as the dialect allows.
"""

from __future__ import annotations

from typing import Any

from kvstet.dialects.values import present
from kvstet.types import Usage


def chat_usage(usage: Usage) -> dict[str, Any] | None:
    """None where nothing is known."""
    if usage.num_input_tokens is None and usage.num_output_tokens is None:
        return None
    given, made = usage.num_input_tokens or 0, usage.num_output_tokens or 0
    cached, thought = _details(usage)
    return {
        "prompt_tokens": given,
        **({"prompt_tokens_details": cached} if cached else {}),
        "completion_tokens": made,
        **({"completion_tokens_details": thought} if thought else {}),
        "total_tokens": given + made,
    }


def responses_usage(usage: Usage) -> dict[str, Any] | None:
    """None where nothing is known. The details are demanded here, and clients read them without asking."""
    if usage.num_input_tokens is None and usage.num_output_tokens is None:
        return None
    given, made = usage.num_input_tokens or 0, usage.num_output_tokens or 0
    cached, thought = _details(usage)
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": 0, **cached},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0, **thought},
        "total_tokens": given + made,
    }


def _details(usage: Usage) -> tuple[dict[str, int], dict[str, int]]:
    cached = {"cached_tokens": usage.num_cache_read_tokens, "cache_write_tokens": usage.num_cache_write_tokens}
    return present(cached), present({"reasoning_tokens": usage.num_reasoning_tokens})


def messages_usage(usage: Usage) -> dict[str, Any]:
    """Both counts are demanded; clients that show them cannot do without."""
    read, write = usage.num_cache_read_tokens, usage.num_cache_write_tokens
    thought, long = usage.num_reasoning_tokens, usage.num_long_cache_write_tokens
    return {
        "input_tokens": max(0, (usage.num_input_tokens or 0) - (read or 0) - (write or 0)),
        "cache_creation_input_tokens": write,
        "cache_read_input_tokens": read,
        "output_tokens": usage.num_output_tokens or 0,
        **({"cache_creation": _by_lifetime(write, long)} if write is not None and long is not None else {}),
        **({"output_tokens_details": {"thinking_tokens": thought}} if thought is not None else {}),
    }


def _by_lifetime(num_write_tokens: int, num_long_tokens: int) -> dict[str, int]:
    short = max(0, num_write_tokens - num_long_tokens)
    return {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": num_long_tokens}
