"""What edits cost: tokens that were computed again, and would have been reused without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kvstet.edits.edit import RELATIONS, Edit, EditKind
from kvstet.edits.history import Place
from kvstet.edits.snapshot import Item, Snapshot
from kvstet.types import MessageSpan, Reuse

CHARACTERS_PER_TOKEN = 4
"""Of English and code, for what was never tokenised."""

FEW_TOKENS = 32
"""Known tokens computed again that are no eviction: resuming happens at message ends, a few tokens earlier."""

CLOSING_TOKENS = 2
"""A message may end in an end-of-turn token and a newline; of its own replies the cache may not have seen these."""

_OF_HEAD: frozenset[EditKind] = frozenset(
    {"tools_added", "tools_removed", "tools_reordered", "tools_changed", "other_model", "other_template"}
)
_FREE: frozenset[EditKind] = frozenset({"new_conversation", "side_request", "sub_agent", "rewound"})
"""They say what a request is, or where it goes on; what is computed for them is new."""


@dataclass(frozen=True, slots=True)
class Bill:
    """The parts of a prompt that were computed again."""

    reuse: Reuse
    spans: tuple[MessageSpan, ...] = field(repr=False)
    shares: tuple[float, ...] = field(repr=False)
    seconds: float | None
    """That computing took, where it was done."""

    def num_tokens_again(self, position: int) -> int:
        """Tokens from ``position`` on that the conversation had before, and of which no state was known here."""
        start = max(position, self.num_unbroken_tokens)
        parts = (max(0, span.stop - max(start, span.start)) * self._share(span) for span in self.spans)
        return min(round(sum(parts) * self._computed_share), self.reuse.num_computed_tokens)

    def seconds_of(self, num_tokens: int) -> float | None:
        return None if self.seconds is None else self.seconds * num_tokens / max(1, self.reuse.num_computed_tokens)

    @property
    def num_unbroken_tokens(self) -> int:
        """What is computed before that was evicted, and is no edit's fault."""
        return max(self.reuse.num_known_tokens, self.reuse.num_reused_tokens + self.reuse.num_loaded_tokens)

    @property
    def _computed_share(self) -> float:
        """Behind what is resumed, some tokens may have kept their state at moved positions."""
        computed, shifted = self.reuse.num_computed_tokens, self.reuse.num_shifted_tokens
        return computed / (computed + shifted) if computed else 0.0

    def _share(self, span: MessageSpan) -> float:
        return self.shares[span.index] if span.index is not None and span.index < len(self.shares) else 0.0


def num_lost_tokens(reuse: Reuse) -> int:
    """Known tokens that had to be computed again; the last prompt token always has to be."""
    return min(reuse.num_known_tokens, reuse.num_prompt_tokens - 1) - reuse.num_cached_tokens


def span_at(position: int, spans: Sequence[MessageSpan]) -> MessageSpan | None:
    """The span that holds the token."""
    return next((span for span in spans if span.start <= position < span.stop), None)


def priced(place: Place, after: Snapshot, reuse: Reuse, seconds: float | None) -> tuple[Edit, ...]:
    """The place's edits that took effect in this prompt, and what else broke its prefix, each with its costs.

    ``after`` carries the prompt's spans. Edits before the point where the prompt left what was known changed nothing
    that the model reads, and are left out.
    """
    bill = Bill(reuse, after.spans, place.shares, seconds)
    edits = [
        edit for edit in place.edits if edit.kind in RELATIONS or _stop(edit, after.spans) > reuse.num_known_tokens
    ]
    hidden = _hidden(place, after, bill)
    if hidden is not None and not any(_is_before(edit, hidden, after.spans) for edit in edits):
        edits.append(hidden)
        edits.sort(key=lambda edit: (edit.kind not in RELATIONS, _start(edit, after.spans)))
    return (*_evicted(place, after, bill), *_with_costs(edits, bill))


def _with_costs(edits: Sequence[Edit], bill: Bill) -> list[Edit]:
    breaking = next((edit for edit in edits if edit.kind not in _FREE), None)
    return [_with_cost(edit, bill, is_breaking=edit is breaking) for edit in edits]


def _with_cost(edit: Edit, bill: Bill, *, is_breaking: bool) -> Edit:
    if edit.kind in RELATIONS and not is_breaking:
        return edit
    start = _start(edit, bill.spans)
    alone = 0 if edit.kind in _FREE else bill.num_tokens_again(start)
    num_tokens = alone if is_breaking else 0
    return replace(
        edit,
        token=bill.num_unbroken_tokens if is_breaking else start,
        num_tokens=num_tokens,
        num_tokens_alone=alone,
        seconds=bill.seconds_of(num_tokens),
    )


def _evicted(place: Place, after: Snapshot, bill: Bill) -> list[Edit]:
    """State that is not there any more, although it is known that it was."""
    reuse = bill.reuse
    num_lost = num_lost_tokens(reuse)
    if num_lost <= FEW_TOKENS:
        return []
    resumed = reuse.num_reused_tokens + reuse.num_loaded_tokens
    span = span_at(resumed, after.spans)
    index, role = (span.index, span.role) if span else (None, None)
    return [Edit("evicted", index, role, None, None, (), resumed, num_lost, num_lost, bill.seconds_of(num_lost))]


def _hidden(place: Place, after: Snapshot, bill: Bill) -> Edit | None:
    """What broke the prefix within a message that means what it meant before."""
    known, before = bill.reuse.num_known_tokens, place.before
    span = span_at(known, after.spans)
    if before is None or before.reply is None or span is None or span.index is None:
        return None
    is_kept = span.index < len(place.shares) and place.shares[span.index] == 1.0
    # Between two messages nothing is broken, but for a reply: it was known from the generation prompt on.
    is_inside = span.start < known < span.stop - CLOSING_TOKENS or (span.role == "assistant" and known == span.start)
    if not (is_kept and is_inside) or known >= bill.reuse.num_prompt_tokens - 1:
        return None
    item = after.items[span.index]
    return Edit(_hidden_kind(item, span.index, before, after), span.index, item.role)


def _hidden_kind(item: Item, index: int, before: Snapshot, after: Snapshot) -> EditKind:
    if item.is_head:
        return "other_template"
    if index in after.unthought and index not in before.unthought:
        return "reasoning_stripped_by_template"
    is_as_it_was = any(each.exact == item.exact for each in before.told)
    return "arguments_reserialised" if item.calls and not is_as_it_was else "retokenised"


def _is_before(edit: Edit, other: Edit, spans: Sequence[MessageSpan]) -> bool:
    return edit.kind not in _FREE and _start(edit, spans) <= _start(other, spans)


def _start(edit: Edit, spans: Sequence[MessageSpan]) -> int:
    span = _span_of(edit, spans)
    return span.start if span else 0


def _stop(edit: Edit, spans: Sequence[MessageSpan]) -> int:
    """Where the last token that it may have changed ends. Without spans, the edit counts as effective."""
    span = _span_of(edit, spans)
    return span.stop if span else 1 << 62


def _span_of(edit: Edit, spans: Sequence[MessageSpan]) -> MessageSpan | None:
    if edit.kind in _OF_HEAD or edit.message is None:
        return spans[0] if spans and edit.kind in _OF_HEAD else None
    return next((span for span in spans if span.index == edit.message and span.stop > span.start), None)


def estimated(place: Place, after: Snapshot) -> tuple[Snapshot, Reuse]:
    """The request with spans, and what a cache that forgets nothing would do, both guessed from its characters."""
    after = replace(after, spans=_estimated_spans(after))
    num_tokens = after.spans[-1].stop if after.spans else 0
    known = min(_num_kept_tokens(place, after), max(0, num_tokens - 1))
    return after, Reuse(known, 0, 0, num_tokens - known, known)


def _estimated_spans(snapshot: Snapshot) -> tuple[MessageSpan, ...]:
    spans: list[MessageSpan] = []
    start, rest = 0, sum(tool.num_characters for tool in snapshot.tools)
    for index, item in enumerate(snapshot.items):
        stop = start + 1 + (item.num_characters + rest) // CHARACTERS_PER_TOKEN
        spans.append(MessageSpan(start, stop, index, item.role))
        start, rest = stop, 0
    return tuple(spans)


def _num_kept_tokens(place: Place, after: Snapshot) -> int:
    """Up to the first edit, or the first message that is new."""
    spans = after.spans
    edits = [edit for edit in place.edits if edit.kind not in _FREE]
    explained = {edit.message for edit in edits}
    new = (index for index, share in enumerate(place.shares) if share < 1 and index not in explained)
    ends = [spans[index].start for index in new if index < len(spans)][:1]
    ends += [_estimated_start(edit, after) for edit in edits]
    if not place.shares:
        return 0
    return min(ends, default=spans[-1].stop if spans else 0)


def _estimated_start(edit: Edit, after: Snapshot) -> int:
    start = _start(edit, after.spans)
    if edit.message is None or edit.character is None or edit.kind == "reasoning_stripped":
        return start
    num_before = edit.character
    if edit.message == 0:
        num_before += sum(tool.num_characters for tool in after.tools)
    return start + num_before // CHARACTERS_PER_TOKEN
