"""One request as it stands in the ledger: numbers, names and one sentence; no prompt, no key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Literal

from kvstet.money.bill import Bill, Total, read_share, total_of
from kvstet.types import Usage

Source = Literal["gateway", "agent", "server"]
"""Who sent the request, or passed it on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """Costs are in US dollars. None: not known."""

    time: float
    """When it was sent, in seconds since 1970."""
    session: str
    """A name of the conversation that tells nothing of what it is about."""
    provider: str
    model: str
    source: Source
    usage: Usage
    cost: float | None = None
    cost_without_cache: float | None = None
    saved: float | None = None
    """By the optimiser. None: not known, or there was none."""
    seconds: float | None = None
    """Until the reply was over."""
    first_token_seconds: float | None = None
    verdict: str = ""
    """Why as much of the cache was hit as was, in a sentence that quotes nothing."""


def entry_of(
    bill: Bill,
    *,
    time: float,
    session: str,
    provider: str,
    model: str,
    source: Source,
    seconds: float | None = None,
    first_token_seconds: float | None = None,
    verdict: str = "",
) -> LedgerEntry:
    """Of a bill."""
    return LedgerEntry(
        time=time,
        session=session,
        provider=provider,
        model=model,
        source=source,
        usage=bill.usage,
        cost=bill.cost,
        cost_without_cache=bill.cost_without_cache,
        saved=bill.saved,
        seconds=seconds,
        first_token_seconds=first_token_seconds,
        verdict=verdict,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Several requests together."""

    name: str
    """Of the session, or the day as YYYY-MM-DD."""
    num_requests: int
    first_time: float
    last_time: float
    num_input_tokens: Total
    num_cache_read_tokens: Total
    num_cache_write_tokens: Total
    num_fresh_tokens: Total
    num_output_tokens: Total
    cost: Total
    cost_without_cache: Total
    saved: Total
    """Requests that passed no optimiser are counted as not known."""
    seconds: Total
    read_share: float | None
    """Of the prompt tokens, over requests that told both; None: none did."""


def summary_of(name: str, entries: list[LedgerEntry]) -> Summary:
    """There must be one entry at least."""
    usages = [entry.usage for entry in entries]
    return Summary(
        name=name,
        num_requests=len(entries),
        first_time=min(entry.time for entry in entries),
        last_time=max(entry.time for entry in entries),
        num_input_tokens=total_of(usage.num_input_tokens for usage in usages),
        num_cache_read_tokens=total_of(usage.num_cache_read_tokens for usage in usages),
        num_cache_write_tokens=total_of(usage.num_cache_write_tokens for usage in usages),
        num_fresh_tokens=total_of(usage.num_fresh_tokens for usage in usages),
        num_output_tokens=total_of(usage.num_output_tokens for usage in usages),
        cost=total_of(entry.cost for entry in entries),
        cost_without_cache=total_of(entry.cost_without_cache for entry in entries),
        saved=total_of(entry.saved for entry in entries),
        seconds=total_of(entry.seconds for entry in entries),
        read_share=read_share(usages),
    )


def by_session(entries: Iterable[LedgerEntry]) -> list[Summary]:
    """The session that was last used comes last."""
    return sorted(_grouped(entries, lambda entry: entry.session), key=lambda each: each.last_time)


def by_day(entries: Iterable[LedgerEntry]) -> list[Summary]:
    """Days of this machine's clock, in their order."""
    return _grouped(entries, lambda entry: datetime.fromtimestamp(entry.time).date().isoformat())


def _grouped(entries: Iterable[LedgerEntry], name: Callable[[LedgerEntry], str]) -> list[Summary]:
    groups = groupby(sorted(entries, key=name), key=name)
    return [summary_of(each, list(group)) for each, group in groups]
