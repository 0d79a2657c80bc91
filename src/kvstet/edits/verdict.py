"""Why a prompt had to be computed as far as it was, in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kvstet.edits.edit import RELATIONS, Edit
from kvstet.edits.history import Place
from kvstet.edits.pricing import CLOSING_TOKENS, FEW_TOKENS, num_lost_tokens, priced, span_at
from kvstet.edits.snapshot import Snapshot
from kvstet.edits.words import clauses, named, tokens
from kvstet.types import MessageSpan, Reuse

VerdictKind = Literal["cold", "append", "diverged", "evicted", "cached", "refused"]

_HEADER_TOKENS = 16
"""Prompts that share no more than this, all in their first message, share the template's header, not a conversation."""


_NOT_BLAMED = RELATIONS | {"rewound", "evicted"}

_NAMING_TOOLS = frozenset({"tools_added", "tools_removed", "tools_changed", "arguments_changed"})

_MAX_CLAUSES = 4
"""Edits that are told in a sentence, of each kind together."""

_LONG_SECONDS = 10.0
"""From here on without a fraction."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What kept a prompt from being reused whole."""

    kind: VerdictKind
    """``cold``: a new conversation. ``append``: only new messages follow what was known. ``diverged``: a known
    message changed. ``evicted``: most of what was computed had been known, but its state was gone or could not be
    resumed there. ``cached``: nothing but the generation prompt or the last token was left to compute.
    ``refused``: the request asked for no cache."""
    sentence: str
    message: int | None = None
    """Index of the request's message in which the prompt left the cached path; None where there is no such message."""
    role: str | None = None
    token: int | None = None
    """Token position at which it left; None for ``cached``."""
    edits: tuple[Edit, ...] = ()
    """What was changed, and what the request is, with the costs; the earliest in the prompt comes first."""


def verdict(reuse: Reuse, spans: tuple[MessageSpan, ...]) -> Verdict:
    """Explain ``reuse``. ``spans`` lie in order over the prompt, and may be empty for a prompt without messages."""
    num_lost = num_lost_tokens(reuse)
    num_new = reuse.num_prompt_tokens - reuse.num_known_tokens
    span = span_at(reuse.num_known_tokens, spans)
    if num_lost > max(num_new, FEW_TOKENS):
        return _evicted(reuse, spans, num_lost)
    if num_new <= 0 or (span is not None and _is_generation_prompt(span)):
        return _cached(reuse)
    if _is_cold(reuse, span):
        return _cold(reuse, span)
    following = _first_new_message(reuse.num_known_tokens, span, spans)
    if following is not None:
        return _appended(reuse, spans, following)
    return _diverged(reuse, spans, span)


def explained(place: Place, after: Snapshot, reuse: Reuse, seconds: float | None) -> Verdict:
    """As `verdict`, for a request whose place is known; ``after`` carries its spans, ``seconds`` those of computing.

    What was changed is told first, and what it made to be computed again.
    """
    base = _as_placed(verdict(reuse, after.spans), place, after, reuse)
    edits = priced(place, after, reuse, seconds)
    blamed = _blamed(edits)
    if base.kind == "evicted" or not edits:
        return replace(base, edits=edits)
    if blamed:
        return _blaming(base, reuse, after.spans, edits, blamed)
    return replace(base, sentence=_opened(base, edits), edits=edits)


def _as_placed(base: Verdict, place: Place, after: Snapshot, reuse: Reuse) -> Verdict:
    """Where the prompt left the known path in a message that is new, it was appended.

    The path may go on into such a message: how it is opened was foreseen, and computed before it came.
    """
    if base.kind != "diverged" or place.before is None or base.message is None:
        return base
    is_new = base.message >= len(place.before.told)
    span = span_at(reuse.num_known_tokens, after.spans)
    return _appended(reuse, after.spans, span) if is_new and span is not None else base


def for_log(verdict: Verdict) -> str:
    """The sentence without the words in it that the client chose: names of tools."""
    sentence = verdict.sentence
    for edit in verdict.edits:
        if edit.kind in _NAMING_TOOLS and edit.what:
            sentence = sentence.replace(named(edit), f" ({len(edit.what)})")
    return sentence


def refused(reuse: Reuse) -> Verdict:
    """For a request that wants everything computed anew."""
    return Verdict("refused", f"Computed all {reuse.num_prompt_tokens:,} tokens: the request asked for no cache.")


def _blamed(edits: Sequence[Edit]) -> list[Edit]:
    """The edit that broke the prefix, and those behind it."""
    changes = [edit for edit in edits if edit.kind not in _NOT_BLAMED]
    return changes if any(edit.num_tokens for edit in changes) else []


def _blaming(
    base: Verdict, reuse: Reuse, spans: tuple[MessageSpan, ...], edits: tuple[Edit, ...], blamed: Sequence[Edit]
) -> Verdict:
    first = next(edit for edit in blamed if edit.num_tokens)
    count = first.num_tokens or 0
    sentence = (
        f"{_relation(edits)}Recomputed {tokens(count)}: {_listed(clauses(blamed))}{_seconds(first.seconds)}. Computed"
        f" {_share(reuse)} in all{_again(reuse)}{_shifted(reuse)}{_reused_messages(reuse, spans)}."
    )
    return Verdict("diverged", sentence, first.message, first.role, first.token, edits)


def _opened(base: Verdict, edits: Sequence[Edit]) -> str:
    """The sentence, and before it what the request is."""
    relation = _relation(edits)
    if not relation or base.sentence.startswith("New conversation"):
        return base.sentence.replace("New conversation: n", f"{relation}N", 1) if relation else base.sentence
    return relation + base.sentence


def _relation(edits: Sequence[Edit]) -> str:
    """ "Side request (title). "; nothing for a conversation's next request."""
    told = [edit for edit in edits if edit.kind in RELATIONS - {"new_conversation"} or edit.kind == "rewound"]
    named = clauses(told)
    return "".join(f"{clause[0].upper()}{clause[1:]}. " for clause in named)


def _listed(parts: Sequence[str]) -> str:
    shown = [*parts[:_MAX_CLAUSES], *(["more was changed behind that"] if len(parts) > _MAX_CLAUSES else [])]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])}, and {shown[-1]}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"; {seconds:.0f} s" if seconds >= _LONG_SECONDS else f"; {seconds:.1f} s"


def _num_resumed_tokens(reuse: Reuse) -> int:
    """The prefix whose state was used in place; shifted tokens lie behind it."""
    return reuse.num_reused_tokens + reuse.num_loaded_tokens


def _is_generation_prompt(span: MessageSpan) -> bool:
    return span.index is None and span.start > 0


def _is_cold(reuse: Reuse, span: MessageSpan | None) -> bool:
    known = reuse.num_known_tokens
    return known == 0 or (known <= _HEADER_TOKENS and span is not None and span.start == 0)


def _first_new_message(known: int, span: MessageSpan | None, spans: tuple[MessageSpan, ...]) -> MessageSpan | None:
    """The message that begins where the known path ends, if it ends between two messages."""
    if span is None:
        return None
    if known == span.start:
        return span
    if span.role == "assistant" and known >= span.stop - CLOSING_TOKENS:
        return span_at(span.stop, spans)
    return None


def _evicted(reuse: Reuse, spans: tuple[MessageSpan, ...], num_lost: int) -> Verdict:
    resumed = _num_resumed_tokens(reuse)
    span = span_at(resumed, spans)
    where = f" from {_place(resumed, span)} on" if resumed else ""
    sentence = (
        f"Computed {_share(reuse)}: the state of {tokens(num_lost)} that were known had been evicted or could not be"
        f" resumed{where}{_reused_messages(reuse, spans)}."
    )
    return _located("evicted", sentence, resumed, span)


def _cached(reuse: Reuse) -> Verdict:
    return Verdict("cached", f"Computed {_share(reuse)}: the whole conversation was cached{_shifted(reuse)}.")


def _cold(reuse: Reuse, span: MessageSpan | None) -> Verdict:
    known = reuse.num_known_tokens
    beyond = f" beyond its first {tokens(known)}" if known else ""
    sentence = f"New conversation: nothing like it was cached{beyond}; computed {_share(reuse)}."
    return _located("cold", sentence, known, span)


def _appended(reuse: Reuse, spans: tuple[MessageSpan, ...], following: MessageSpan) -> Verdict:
    sentence = (
        f"Appended: computed {_share(reuse)}, new from {_name(following)} on{_again(reuse)}{_shifted(reuse)}"
        f"{_reused_messages(reuse, spans)}."
    )
    return _located("append", sentence, reuse.num_known_tokens, following)


def _diverged(reuse: Reuse, spans: tuple[MessageSpan, ...], span: MessageSpan | None) -> Verdict:
    known = reuse.num_known_tokens
    sentence = (
        f"Computed {_share(reuse)}: the prompt left the cached path {_where_left(known, span)}{_again(reuse)}"
        f"{_shifted(reuse)}{_reused_messages(reuse, spans)}."
    )
    return _located("diverged", sentence, known, span)


def _located(kind: VerdictKind, sentence: str, token: int, span: MessageSpan | None) -> Verdict:
    if span is None or span.index is None:
        return Verdict(kind, sentence, token=token)
    return Verdict(kind, sentence, message=span.index, role=span.role, token=token)


def _share(reuse: Reuse) -> str:
    return f"{reuse.num_computed_tokens:,} of {tokens(reuse.num_prompt_tokens)}"


def _name(span: MessageSpan) -> str:
    return f"the {span.role} turn" if span.index is None else f"message {span.index} ({span.role})"


def _place(position: int, span: MessageSpan | None) -> str:
    if span is None or span.index is None:
        return f"token {position:,}"
    inside = position - span.start
    return f"{_name(span)}, {tokens(inside)} in," if inside else _name(span)


def _where_left(position: int, span: MessageSpan | None) -> str:
    if span is None or span.index is None:
        return f"at token {position:,}"
    return f"in {_name(span)}, {tokens(position - span.start)} in"


def _again(reuse: Reuse) -> str:
    num_lost = num_lost_tokens(reuse)
    return f"; {num_lost:,} of them were known, but could not be resumed" if num_lost > 0 else ""


def _shifted(reuse: Reuse) -> str:
    num_shifted = reuse.num_shifted_tokens
    return f"; {tokens(num_shifted)} kept their state at moved positions (approximate)" if num_shifted else ""


def _reused_messages(reuse: Reuse, spans: tuple[MessageSpan, ...]) -> str:
    whole = [span.index for span in spans if span.index is not None and span.stop <= _num_resumed_tokens(reuse)]
    if not whole:
        return ""
    if whole[0] == whole[-1]:
        return f"; message {whole[0]} was reused"
    return f"; messages {whole[0]}-{whole[-1]} were reused"
