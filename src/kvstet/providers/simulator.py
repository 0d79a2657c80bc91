"""What a provider's cache would do with a row of requests, by its documented rules; no account and no network needed.

Three kinds of rule cover the table: entries at marked blocks (Anthropic, Bedrock, OpenAI from GPT-5.6 on, Qwen), any
prefix in steps (most others), whole units (DeepSeek). All numbers come from the row's `CacheRule`. A simulator is
exact where the rule is, and hopeful elsewhere: it never evicts for want of room, and every request finds its machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from kvstet.errors import InvalidRequest
from kvstet.providers.blocks import Block, Body, Mark, blocks_of, dependencies, value_at
from kvstet.providers.entries import Digest, Entry, Held, Prompts, digests
from kvstet.providers.estimate import TokenIds
from kvstet.providers.provider import CacheRule
from kvstet.types import Usage

Scope = tuple[str, str, str]
"""Owner, model, cache key: nothing is shared between two of them."""

_ENTRY_BYTES = 500
"""Of an entry at the end of a block: its times and its key."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the simulated cache sees it."""

    blocks: Sequence[Block] = field(repr=False)
    ends: Sequence[int] = field(repr=False)
    """Tokens up to the end of each block."""
    body: Body = field(repr=False)
    scope: Scope
    at_seconds: float

    @property
    def num_tokens(self) -> int:
        return self.ends[-1] if self.ends else 0

    @property
    def tokens(self) -> TokenIds:
        """Of the whole prompt."""
        return np.concatenate([np.empty(0, np.int64), *(block.tokens for block in self.blocks)])


class Simulator:
    """One provider's cache under one rule."""

    def __init__(self, rule: CacheRule, *, first_token_seconds: float = 0.0) -> None:
        """``first_token_seconds`` after a request is sent, what it wrote can be read: not by one sent beside it."""
        self.rule = rule
        self._unmarked = Simulator(rule.unmarked, first_token_seconds=first_token_seconds) if rule.unmarked else None
        self._first_token_seconds = first_token_seconds
        self._entries: dict[tuple[Scope, Digest], Entry] = {}
        self._prompts: dict[Scope, Prompts] = {}
        self._now_seconds = 0.0

    def __repr__(self) -> str:
        num_prompts = sum(len(each.held) for each in self._prompts.values())
        return f"Simulator({self.rule.kind}, {len(self._entries)} entries, {num_prompts} prompts)"

    @property
    def num_held_bytes(self) -> int:
        """That its memory of prompts takes, about."""
        num_tokens = sum(len(held.tokens) for each in self._prompts.values() for held in each.held)
        own = num_tokens * np.dtype(np.int64).itemsize + len(self._entries) * _ENTRY_BYTES
        return own + (self._unmarked.num_held_bytes if self._unmarked is not None else 0)

    def send(
        self,
        body: Body,
        dialect: str,
        *,
        at_seconds: float | None = None,
        model: str | None = None,
        owner: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Usage:
        """What the provider would report of the prompt: input, read and written tokens. Requests come in the order of
        their times; without one, a second after the last. Raises InvalidRequest as the provider would."""
        self._now_seconds = self._now_seconds + 1.0 if at_seconds is None else at_seconds
        request = _request(
            body, dialect, self.rule, at_seconds=self._now_seconds, owner=owner, model=model, headers=headers or {}
        )
        return self._sent(request)

    def _sent(self, request: Request) -> Usage:
        if self._unmarked is not None and not any(block.mark for block in request.blocks):
            return self._unmarked._sent(request)
        if self.rule.needs_key and not request.scope[-1]:
            return _usage(request, 0)
        match self.rule.kind:
            case "breakpoints":
                return self._at_breakpoints(request)
            case "prefix":
                return self._at_any_prefix(request)
            case "units":
                return self._at_units(request)
            case "none":
                return _usage(request, 0)

    # Entries at marked blocks

    def _at_breakpoints(self, request: Request) -> Usage:
        marks = _marks(request, self.rule)
        chain = _chain(request, self.rule)
        read = self._read_at(request, chain, marks)
        num_read = request.ends[read] if read is not None else 0
        num_written = num_long = 0
        for index, mark in sorted(marks.items()):
            num_new = request.ends[index] - num_read - num_written
            if num_new > 0 and request.ends[index] >= (self.rule.min_tokens or 0):
                self._write(request, chain[index], mark)
                num_written += num_new
                num_long += num_new if self.rule.lifetime(mark.ttl) in self.rule.lifetimes[1:] else 0
        return _usage(request, num_read, num_written, num_long)

    def _write(self, request: Request, digest: Digest, mark: Mark) -> None:
        lifetime = self.rule.lifetime(mark.ttl)
        entry = Entry(request.at_seconds, request.at_seconds, lifetime.seconds if lifetime else None)
        before = self._entries.get((request.scope, digest))
        if before is not None and not before.is_over(request.at_seconds):
            # Of two that are sent side by side, what the first writes can be read no later for the second.
            entry.written_seconds = before.written_seconds
        self._entries[request.scope, digest] = entry

    def _read_at(self, request: Request, chain: Sequence[Digest], marks: Mapping[int, Mark]) -> int | None:
        """The block up to which the longest live entry goes. What is found is used, and stays the longer for it."""
        found: list[int] = []
        for index in _candidates(request, self.rule, marks):
            entry = self._entries.get((request.scope, chain[index]))
            if entry is not None and entry.is_live(request.at_seconds, self._first_token_seconds):
                found.append(index)
                if self.rule.reads_refresh:
                    entry.used_seconds = request.at_seconds
        return max(found, default=None)

    # Any prefix

    def _at_any_prefix(self, request: Request) -> Usage:
        tokens = request.tokens
        prompts = self._prompts.setdefault(request.scope, Prompts())
        found = prompts.common(tokens, request.at_seconds, self._first_token_seconds)
        num_common = _num_kept(request, found, self.rule)
        num_read = num_common - num_common % self.rule.granularity_tokens
        num_read = num_read if num_read >= (self.rule.min_tokens or 0) else 0
        self._use([held for held, length in found if length >= num_read > 0], request)
        if request.num_tokens >= (self.rule.min_tokens or 0):
            prompts.add(Held(tokens, self._new_entry(request)))
        return _usage(request, num_read)

    # Whole units

    def _at_units(self, request: Request) -> Usage:
        tokens = request.tokens
        prompts = self._prompts.setdefault(request.scope, Prompts())
        found = prompts.common(tokens, request.at_seconds, self._first_token_seconds)
        units = {length for held, num_common in found for length in held.lengths if length <= num_common}
        whole = [(held, num_common) for held, num_common in found if num_common == len(held.tokens)]
        num_read = max(units | {_num_kept(request, whole, self.rule)})
        self._use([held for held, num_common in found if num_common >= num_read > 0], request)
        for held, num_common in found:
            # "When the system detects a common prefix across multiple requests, it will persist that".
            held.lengths |= {num_common} - {0}
        prompts.add(Held(tokens, self._new_entry(request), {len(tokens)}))
        return _usage(request, num_read)

    def _use(self, read: Iterable[Held], request: Request) -> None:
        for held in read:
            held.entry.used_seconds = request.at_seconds if self.rule.reads_refresh else held.entry.used_seconds

    def _new_entry(self, request: Request) -> Entry:
        lifetime = self.rule.lifetime(_timed(Mark(), request, self.rule).ttl)
        return Entry(request.at_seconds, request.at_seconds, lifetime.seconds if lifetime else None)


class Ideal:
    """The best that any cache could do: every token is written once, and read ever after, whatever the minimum, the
    steps, the marks and the time between."""

    def __init__(self, rule: CacheRule) -> None:
        self.rule = rule
        self._prompts: dict[Scope, Prompts] = {}
        self._num_sent = 0

    def __repr__(self) -> str:
        return f"Ideal({sum(len(each.held) for each in self._prompts.values())} prompts)"

    def send(self, body: Body, dialect: str, *, model: str | None = None, owner: str = "") -> Usage:
        """As `Simulator.send`."""
        self._num_sent += 1
        request = _request(
            body, dialect, self.rule, at_seconds=float(self._num_sent), owner=owner, model=model, headers={}
        )
        prompts = self._prompts.setdefault((owner, request.scope[1], ""), Prompts())
        tokens = request.tokens
        num_read = _num_kept(request, prompts.common(tokens, request.at_seconds, 0.0), self.rule)
        prompts.add(Held(tokens, Entry(request.at_seconds, request.at_seconds, None)))
        return _usage(request, num_read, request.num_tokens - num_read)


def best_possible(bodies: Iterable[Body], dialect: str, rule: CacheRule) -> list[Usage]:
    """Of a row of requests, what `Ideal` would report."""
    ideal = Ideal(rule)
    return [ideal.send(body, dialect) for body in bodies]


def _usage(request: Request, num_read: int, num_written: int = 0, num_long: int = 0) -> Usage:
    return Usage(
        num_input_tokens=request.num_tokens,
        num_cache_read_tokens=num_read,
        num_cache_write_tokens=num_written,
        num_long_cache_write_tokens=num_long,
    )


def _request(
    body: Body,
    dialect: str,
    rule: CacheRule,
    *,
    at_seconds: float,
    owner: str,
    model: str | None,
    headers: Mapping[str, str],
) -> Request:
    blocks = blocks_of(body, dialect, rule)
    ends = list(accumulate(len(block.tokens) for block in blocks))
    name = model if model is not None else str(body.get("model", ""))
    return Request(blocks, ends, body, (owner, name, _key(body, rule, headers)), at_seconds)


def _key(body: Body, rule: CacheRule, headers: Mapping[str, str]) -> str:
    """What the client says to keep a conversation in one place."""
    told = body.get(rule.cache_key_field) if rule.cache_key_field else None
    sent = next((value for name, value in headers.items() if name.lower() == rule.affinity_header), None)
    return str(told or sent or "")


def _marks(request: Request, rule: CacheRule) -> dict[int, Mark]:
    """The blocks at which this request writes. Raises InvalidRequest where the provider refuses it."""
    asked = {index: _timed(block.mark, request, rule) for index, block in enumerate(request.blocks) if block.mark}
    if rule.beyond_max == "error":
        _refuse(request, asked, rule)
    automatic = _automatic(request, rule)
    num_asked = (rule.max_breakpoints or len(asked) + 1) - (automatic is not None)
    latest = sorted(asked)[max(0, len(asked) - num_asked) :]
    marks = {index: asked[index] for index in latest}
    if automatic is not None:
        marks.setdefault(automatic, _timed(Mark(), request, rule))
    return marks


def _timed(mark: Mark, request: Request, rule: CacheRule) -> Mark:
    ttl = value_at(request.body, rule.ttl_field) if rule.ttl_field else mark.ttl
    return Mark(ttl if isinstance(ttl, str) else None)


def _refuse(request: Request, marks: Mapping[int, Mark], rule: CacheRule) -> None:
    if rule.max_breakpoints is not None and len(marks) > rule.max_breakpoints:
        raise InvalidRequest(
            f"A maximum of {rule.max_breakpoints} blocks with {rule.breakpoint_style} may be provided. Found"
            f" {len(marks)}.",
            param=rule.breakpoint_style,
        )
    lifetimes = [rule.lifetime(marks[index].ttl) for index in sorted(marks)]
    seconds = [lifetime.seconds for lifetime in lifetimes if lifetime]
    if seconds != sorted(seconds, reverse=True):
        raise InvalidRequest(
            f"A {rule.breakpoint_style} block with a longer ttl must not come after one with a shorter ttl.",
            param=rule.breakpoint_style,
        )


def _automatic(request: Request, rule: CacheRule) -> int | None:
    """The block that the provider marks itself: the end of the newest message that it may mark."""
    if not rule.is_automatic or not _is_implicit(request, rule):
        return None
    return next((index for index in reversed(range(len(request.blocks))) if _is_eligible(request.blocks[index])), None)


def _is_implicit(request: Request, rule: CacheRule) -> bool:
    return rule.mode_field is None or value_at(request.body, rule.mode_field) != "explicit"


def _is_eligible(block: Block) -> bool:
    return block.part != "tools" and block.ends_message and block.role != "assistant" and block.is_markable


def _candidates(request: Request, rule: CacheRule, marks: Mapping[int, Mark]) -> Iterable[int]:
    """Blocks at whose ends an entry is looked for."""
    if rule.lookback_blocks is not None:
        return {place for index in marks for place in range(max(0, index - rule.lookback_blocks + 1), index + 1)}
    is_implicit = rule.is_automatic and _is_implicit(request, rule)
    places = [
        index for index, block in enumerate(request.blocks) if block.mark or (is_implicit and _is_eligible(block))
    ]
    return places[-(rule.max_matched_breakpoints or len(places)) :] if places else places


def _chain(request: Request, rule: CacheRule) -> list[Digest]:
    """The digest at the end of each block; with what the system prompt's and the messages' entries depend on."""
    salts = {
        "tools": b"",
        "system": dependencies(request.body, request.blocks, rule.system_depends_on).encode(),
        "messages": dependencies(
            request.body, request.blocks, (*rule.system_depends_on, *rule.messages_depend_on)
        ).encode(),
    }
    first = json.dumps(request.scope).encode()
    return digests(first, [(salts[block.part], block.tokens) for block in request.blocks])


def _num_kept(request: Request, found: Iterable[tuple[Held, int]], rule: CacheRule) -> int:
    """Tokens that stand at the beginning of a prompt that is held; with the reply to it, where that is kept too."""
    lengths = [
        _end_of_reply(request, length) if rule.keeps_output and length == len(held.tokens) else length
        for held, length in found
    ]
    return max(lengths, default=0)


def _end_of_reply(request: Request, num_input: int) -> int:
    """The reply to a request whose input ended at ``num_input`` is the assistant's message that follows."""
    last = num_input
    for block, end in zip(request.blocks, request.ends, strict=True):
        if end > num_input and block.role != "assistant":
            break
        last = max(last, end)
    return last
