"""A request that has passed, as it is told: a row of `/v1/kvstet/requests`, and a line of the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvstet.api.sessions import edit_as_json
from kvstet.edits.verdict import Verdict, for_log
from kvstet.gateway.headers import texts_of
from kvstet.gateway.observing.billing import Billed
from kvstet.gateway.observing.reading import Answered, Asked
from kvstet.gateway.observing.reuse import Observed
from kvstet.gateway.passage import Passage
from kvstet.types import Usage


@dataclass(frozen=True, slots=True)
class Told:
    """All that is known of it. None: not known, or not there."""

    passage: Passage
    asked: Asked | None
    answered: Answered | None
    seen: Observed | None
    verdict: Verdict | None
    billed: Billed | None
    session: str | None
    unread: list[str] = field(default_factory=list[str])
    """What could not be read, and why."""

    @property
    def usage(self) -> Usage:
        return self.answered.reply.usage if self.answered is not None else Usage()

    @property
    def hit_rate(self) -> float | None:
        """The part of the input that was read from the cache; None where the upstream does not say."""
        usage = self.usage
        if not usage.num_input_tokens or usage.num_cache_read_tokens is None:
            return None
        return usage.num_cache_read_tokens / usage.num_input_tokens


def row_of(told: Told, conversation: int | None, parent: int | None) -> dict[str, Any]:
    """Of `/v1/kvstet/requests`."""
    passage, call = told.passage, told.passage.call
    reply = told.answered.reply if told.answered is not None else None
    edits = told.verdict.edits if told.verdict is not None else ()
    return {
        "id": call.id,
        "upstream_id": _upstream_id(passage),
        "time": call.began_at,
        "path": call.path,
        "dialect": call.dialect.name if call.dialect is not None else None,
        "upstream_dialect": passage.spoken.name if passage.spoken is not None else None,
        "model": told.asked.request.model if told.asked is not None else None,
        "session": told.session,
        "conversation": conversation,
        "parent": parent,
        "messages": len(told.asked.snapshot.items) if told.asked is not None else None,
        "status": passage.status,
        "is_complete": passage.received.is_complete,
        "end": reply.end.reason if reply is not None and reply.end is not None else None,
        "usage": usage_as_json(told.usage),
        "hit_rate": told.hit_rate,
        "cost": told.billed.as_json if told.billed is not None else None,
        "verdict": told.verdict.sentence if told.verdict is not None else None,
        "is_estimated": told.seen.is_estimated if told.seen is not None else None,
        "edits": [edit_as_json(edit) for edit in edits],
        "vendor_reason": told.answered.diagnosis if told.answered is not None else None,
        "changes": [{"name": each.name, "entry": each.entry, "what": each.what} for each in passage.changes],
        "not_translated": list(passage.dropped),
        "unread": told.unread,
        "bytes": {"sent": passage.sent.num_bytes, "received": passage.received.num_bytes},
        "overhead_seconds": passage.overhead_seconds,
        "first_byte_seconds": passage.first_byte_seconds,
        "seconds": passage.seconds,
    }


def costs_of(told: Told) -> dict[str, Any]:
    """Of `/v1/kvstet/sessions`, where the server of local models has the same names."""
    assert told.seen is not None, "what has no place has no costs"
    reuse = told.seen.reuse
    return {
        "reused": reuse.num_reused_tokens,
        "loaded": 0,
        "shifted": 0,
        "computed": reuse.num_computed_tokens,
        "known": reuse.num_known_tokens,
        "generated": told.usage.num_output_tokens,
        "compute_seconds": told.passage.first_byte_seconds or 0.0,
        "is_estimated": told.seen.is_estimated,
        "usage": usage_as_json(told.usage),
        "hit_rate": told.hit_rate,
        "cost": told.billed.as_json if told.billed is not None else None,
        "vendor_reason": told.answered.diagnosis if told.answered is not None else None,
        "changes": [change.name for change in told.passage.changes],
    }


def usage_as_json(usage: Usage) -> dict[str, int | None]:
    """Null: the upstream does not say."""
    return {
        "input": usage.num_input_tokens,
        "cache_read": usage.num_cache_read_tokens,
        "cache_write": usage.num_cache_write_tokens,
        "output": usage.num_output_tokens,
        "reasoning": usage.num_reasoning_tokens,
    }


def line_of(told: Told, conversation: int | None) -> str:
    """For the log: no words of the client's, and none of a prompt."""
    dialect = told.passage.call.dialect
    parts = [f"conversation {conversation}" if conversation is not None else dialect.name if dialect else "request"]
    if told.passage.status is None:
        parts.append("not answered")
    elif told.passage.status >= 300:
        parts.append(f"status {told.passage.status}")
    elif not told.passage.received.is_complete:
        parts.append("broken off")
    parts.append(_tokens(told))
    parts.append(told.billed.words if told.billed is not None else "")
    parts.append(
        f"changed: {', '.join(change.name for change in told.passage.changes)}" if told.passage.changes else ""
    )
    parts.append(f"the vendor says: {told.answered.diagnosis}" if told.answered and told.answered.diagnosis else "")
    parts.append("; ".join(f"could not read the {each}" for each in told.unread))
    sentence = ""
    if told.verdict is not None and told.seen is not None:
        sentence = f": {'(estimated) ' if told.seen.is_estimated else ''}{for_log(told.verdict)}"
    return ", ".join(part for part in parts if part) + sentence


def _tokens(told: Told) -> str:
    usage, rate = told.usage, told.hit_rate
    if usage.num_input_tokens is None:
        return "tokens not reported" if told.passage.status is not None and told.passage.status < 300 else ""
    read = "cache not reported" if rate is None else f"{rate:.1%} from the cache"
    return f"{usage.num_input_tokens:,} tokens in, {read}"


def _upstream_id(passage: Passage) -> str | None:
    fields = texts_of(passage.received_fields)
    return fields.get("request-id") or fields.get("x-request-id")
