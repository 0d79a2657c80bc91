"""Entries for tests of the account of usage."""

from __future__ import annotations

from typing import Any

from kvstet.money.entry import LedgerEntry
from kvstet.types import Usage

NOON = 1_793_534_400.0
"""2026-11-01 12:00 UTC."""

USAGE = Usage(
    num_input_tokens=1000,
    num_cache_read_tokens=800,
    num_cache_write_tokens=150,
    num_long_cache_write_tokens=0,
    num_output_tokens=20,
    num_reasoning_tokens=5,
)


def entry(number: int = 0, *, usage: Usage = USAGE, **more: Any) -> LedgerEntry:
    told: dict[str, Any] = {
        "time": NOON + 60 * number,
        "session": "a session",
        "provider": "anthropic",
        "model": "claude-opus-5",
        "source": "gateway",
        "cost": 0.25,
        "cost_without_cache": 1.0,
        "saved": 0.5,
        "seconds": 3.0,
        "first_token_seconds": 0.5,
        "verdict": "Appended: nothing broke the prefix.",
        **more,
    }
    return LedgerEntry(usage=usage, **told)
