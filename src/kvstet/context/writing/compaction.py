"""Ways to shorten a conversation that spare its cached prefix. Each is a pure function with its payback shown.

The head stays: instructions, tools, and the task as the user first said it. What a strategy proposes is carried out
when it pays, or when the conversation would not fit any more (`best`). A strategy of one's own is a function of a
`View` that proposes a `Compaction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvstet.context.message import Message, role_of, text_of, with_text
from kvstet.context.writing.budget import Budget
from kvstet.context.writing.payback import Payback, Rates, payback
from kvstet.context.writing.toolset import is_announcing

INSTRUCTION = """\
Pause here, and call no tools. Summarise this conversation from the first message on, so that the work can go on from
the summary alone:
- what the user wants, with every constraint and preference that was said
- what was done and found out: files, functions, commands, exact error messages, decisions and their reasons
- what is under way, and what comes next
Write the summary only."""
"""Asked as one more message of the user, so that the request rides the live prefix."""

PRUNED = "[This output was left out to save context. Call the tool again if it is needed.]"

FULL_SHARE = 0.9
"""Of the prompt's room: beyond it something has to go, since the request for a summary needs room too."""

_BATCH_SHARE = 0.2
"""So much of the room is pruned at once, or nothing: each time, all behind it is written again."""

_NUM_RECENT_OUTPUTS = 4
"""The latest outputs stay: the model is working with them."""

_MIN_OUTPUT_TOKENS = 100
_NUM_SUMMARY_TOKENS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a strategy sees of a conversation. ``num_tokens[i]`` is the size of ``messages[i]``."""

    messages: Sequence[Message]
    """Without the system prompt."""
    num_tokens: Sequence[int]
    num_head_tokens: int
    """Of the system prompt and the tools."""
    num_task_messages: int
    """So many messages at the beginning say what the task is; they stay."""
    budget: Budget
    rates: Rates
    num_expected_requests: int

    @property
    def num_prompt_tokens(self) -> int:
        return self.num_head_tokens + sum(self.num_tokens)

    @property
    def is_full(self) -> bool:
        return self.num_prompt_tokens > self.budget.num_prompt_tokens * FULL_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class Compaction:
    """What could be done. ``messages[:start]`` stay as they are, and so does what the provider has cached of them."""

    kind: Literal["prune", "summary"]
    start: int
    stop: int
    """Messages from here on stay, behind what replaces ``messages[start:stop]``."""
    replaced: Mapping[int, Message] = field(default_factory=dict[int, Message], repr=False)
    """Message -> what stands in its place, where outputs are pruned."""
    num_removed_tokens: int
    payback: Payback
    is_needed: bool
    """The conversation would not fit any more."""


Strategy = Callable[[View], Compaction | None]


def prune(view: View) -> Compaction | None:
    """Old outputs replaced by a note: a large batch, and as near to the end as one is to be had."""
    last = _start_of_recent(view)
    places = [index for index in range(view.num_task_messages, last) if _is_prunable(view, index)]
    batch = view.budget.num_prompt_tokens * _BATCH_SHARE
    chosen: list[int] = []
    for index in reversed(places):
        chosen.append(index)
        if sum(view.num_tokens[place] for place in chosen) >= batch:
            break
    else:
        return None
    start = min(chosen)
    replaced = {index: with_text(view.messages[index], PRUNED) for index in sorted(chosen)}
    num_removed = sum(view.num_tokens[index] for index in chosen)
    num_behind = sum(view.num_tokens[start:])
    paid = payback(
        num_removed_tokens=num_removed,
        num_rewritten_tokens=num_behind - num_removed,
        rates=view.rates,
        num_expected_requests=view.num_expected_requests,
    )
    return Compaction(
        kind="prune",
        start=start,
        stop=max(chosen) + 1,
        replaced=replaced,
        num_removed_tokens=num_removed,
        payback=paid,
        is_needed=view.is_full,
    )


def summarise(view: View) -> Compaction | None:
    """All between the task and the latest messages told in a summary."""
    start, stop = view.num_task_messages, _start_of_kept(view)
    num_removed = sum(view.num_tokens[start:stop])
    if num_removed <= 2 * _NUM_SUMMARY_TOKENS:
        return None
    paid = payback(
        num_removed_tokens=num_removed,
        num_rewritten_tokens=sum(view.num_tokens[stop:]),
        rates=view.rates,
        num_expected_requests=view.num_expected_requests,
        num_summarised_tokens=view.num_prompt_tokens,
        num_summary_tokens=_NUM_SUMMARY_TOKENS,
    )
    return Compaction(
        kind="summary", start=start, stop=stop, num_removed_tokens=num_removed, payback=paid, is_needed=view.is_full
    )


STRATEGIES: tuple[Strategy, ...] = (prune, summarise)


def best(view: View, strategies: Iterable[Strategy] = STRATEGIES) -> Compaction | None:
    """The proposal that saves most; None where none pays and the conversation fits."""
    proposals = [found for strategy in strategies if (found := strategy(view)) is not None]
    useful = [each for each in proposals if each.payback.pays or each.is_needed]
    if view.is_full:
        useful = [each for each in useful if _fits_after(view, each)] or useful
    return max(useful, key=_gain, default=None)


def _gain(proposal: Compaction) -> float:
    paid = proposal.payback
    return paid.saved_per_request * paid.num_expected_requests - paid.cost_now


def _fits_after(view: View, proposal: Compaction) -> bool:
    """With so much room that it is not to be done again at once."""
    left = view.num_prompt_tokens - proposal.num_removed_tokens
    return left <= view.budget.num_prompt_tokens * (FULL_SHARE - _BATCH_SHARE)


def _is_prunable(view: View, index: int) -> bool:
    message = view.messages[index]
    text = text_of(message)
    is_output = role_of(message) == "tool" and view.num_tokens[index] >= _MIN_OUTPUT_TOKENS
    # What tells of tools is not told again.
    return is_output and text is not None and text != PRUNED and not is_announcing(text)


def _start_of_recent(view: View) -> int:
    """The latest outputs stand from here on."""
    outputs = [index for index, message in enumerate(view.messages) if role_of(message) == "tool"]
    return outputs[-_NUM_RECENT_OUTPUTS] if len(outputs) >= _NUM_RECENT_OUTPUTS else 0


def _start_of_kept(view: View) -> int:
    """The earliest message that may stay behind a summary. No output is parted from its call, and what the user has
    said since the last reply stays, however long it is."""
    unanswered = _start_of_unanswered(view)
    kept, num_tokens = unanswered, sum(view.num_tokens[unanswered:])
    for index in range(unanswered - 1, view.num_task_messages - 1, -1):
        num_tokens += view.num_tokens[index]
        if num_tokens > view.budget.num_kept_tokens:
            break
        if role_of(view.messages[index]) != "tool":
            kept = index
    return kept


def _start_of_unanswered(view: View) -> int:
    """Where what the user has said since the last reply begins, behind the task."""
    start = len(view.messages)
    while start > view.num_task_messages and role_of(view.messages[start - 1]) == "user":
        start -= 1
    return start
