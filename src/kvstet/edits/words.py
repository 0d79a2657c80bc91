"""What is said of edits: a clause of the verdict's sentence, and an advice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvstet.edits.edit import Edit, EditKind

_MAX_NAMES = 4
"""Tools that are named; of more, only how many."""


@dataclass(frozen=True, slots=True)
class Words:
    """For one kind of edit. ``{where}`` is one message, or several of them; ``{what}`` is named where it is known."""

    one: str
    several: str
    advice: str


_STABLE = "Text that changes belongs behind the conversation, into the newest message."
_OWN = "Nothing: it is a conversation of its own."

_WORDS: Mapping[EditKind, Words] = {
    "reasoning_stripped": Words(
        "the client left out the reasoning of {where}",
        "the client left out the reasoning of {where}",
        "Let the client send reasoning back as reasoning_content, and drop it only where it drops whole turns.",
    ),
    "reasoning_stripped_by_template": Words(
        "the chat template leaves out reasoning from {where} on, now that the user has spoken",
        "the chat template leaves out reasoning from {where} on, now that the user has spoken",
        "It is how this model was trained; --anticipate auto computes the shorter prompt while the server is idle.",
    ),
    "result_pruned": Words(
        "the client removed the tool result in {where}",
        "the client removed {count} tool results in {where}",
        "Prune rarely and much at once, or only when the context is full.",
    ),
    "result_truncated": Words(
        "the client cut the tool result in {where} short",
        "the client cut {count} tool results short, in {where}",
        "Cut results short before they are sent for the first time.",
    ),
    "result_replaced": Words(
        "the client replaced the tool result in {where} by a stub",
        "the client replaced {count} tool results by stubs, in {where}",
        "Prune rarely and much at once, or only when the context is full (opencode: compaction.prune = false).",
    ),
    "block_inserted": Words(
        "the client inserted text{what} into {where}", "the client inserted text{what} into {where}", _STABLE
    ),
    "block_removed": Words(
        "the client removed text{what} from {where}",
        "the client removed text{what} from {where}",
        "Leave reminders where they were first sent; a later one may say that it takes their place.",
    ),
    "block_replaced": Words(
        "the client replaced text{what} in {where}", "the client replaced text{what} in {where}", _STABLE
    ),
    "message_edited": Words(
        "{where} was edited",
        "{where} were edited",
        "What stands behind an edited message has to be computed again.",
    ),
    "message_inserted": Words(
        "the client inserted {where}",
        "the client inserted {where}",
        "Append messages instead of inserting them between older ones.",
    ),
    "message_dropped": Words(
        "the client dropped {where}", "the client dropped {where}", "Drop messages rarely and many at once, or compact."
    ),
    "messages_reordered": Words(
        "messages come in another order, from {where} on",
        "messages come in another order, from {where} on",
        "Keep messages in the order in which they were first sent.",
    ),
    "rewound": Words(
        "the conversation goes on from before {where}",
        "the conversation goes on from before {where}",
        "Nothing: what stands before that point is reused, and the other branch is kept as long as there is room.",
    ),
    "system_changed": Words("the system prompt changed{what}", "the system prompt changed{what}", _STABLE),
    "tools_added": Words(
        "the client added tools{what}",
        "the client added tools{what}",
        "Send all tools from the beginning, or deferred ones (defer_loading).",
    ),
    "tools_removed": Words(
        "tools are missing{what}",
        "tools are missing{what}",
        "Send the same tools in every request, and forbid calls by tool_choice or in the prompt.",
    ),
    "tools_reordered": Words(
        "tools come in another order",
        "tools come in another order",
        "Sort the tools by name; MCP servers answer in any order.",
    ),
    "tools_changed": Words(
        "tools are described in other words{what}",
        "tools are described in other words{what}",
        "Keep what changes (dates, paths, lists of agents) out of the descriptions of tools.",
    ),
    "arguments_changed": Words(
        "the client changed arguments of calls{what} in {where}",
        "the client changed arguments of calls{what} in {where}",
        "Send arguments back as the model wrote them.",
    ),
    "arguments_reserialised": Words(
        "arguments of calls in {where} came back in another spelling",
        "arguments of calls in {where} came back in another spelling",
        "Send arguments back as the model wrote them, as text.",
    ),
    "retokenised": Words(
        "{where} came back in other tokens",
        "{where} came back in other tokens",
        "Send replies back as they came, white space too.",
    ),
    "compaction": Words(
        "the client compacted the conversation",
        "the client compacted the conversation",
        "Compact late, and keep the system prompt and the tools as they were.",
    ),
    "side_request": Words(
        "side request{what}",
        "side request{what}",
        "Nothing, if it is short; a long one is cheaper behind the conversation's own system prompt and tools.",
    ),
    "sub_agent": Words(
        "sub-agent",
        "sub-agent",
        "Sub-agents that have the system prompt and the tools of their caller, or of each other, share them.",
    ),
    "new_conversation": Words("new conversation", "new conversation", _OWN),
    "evicted": Words(
        "their state was known, and had been evicted or could not be resumed",
        "their state was known, and had been evicted or could not be resumed",
        "Give the cache more room: --cache-ram, --cache-disk.",
    ),
    "other_model": Words(
        "another model is asked for",
        "another model is asked for",
        "Each model has state of its own; stay with one within a conversation.",
    ),
    "other_template": Words(
        "the chat template writes the prompt's beginning in another way",
        "the chat template writes the prompt's beginning in another way",
        "Keep what the template is told (reasoning effort, thinking on or off) the same within a conversation.",
    ),
}

_BY_LINE: Mapping[str, str] = {
    "billing header": "Set CLAUDE_CODE_ATTRIBUTION_HEADER=0, and Claude Code sends no billing header.",
    "git status": "Keep git status out of the system prompt, or fetch it once per session.",
    "clock": "Keep the time of day out of the system prompt; a tool can tell it.",
    "date": "Give the date in a message of its own when it changes, not in the system prompt.",
    "working directory": "Name the working directory in the first message, not in the system prompt.",
    "directory listing": "List the directory once, or let the model ask for it.",
    "memory file": "Let changes of memory files take effect with the next conversation.",
}


def clauses(edits: Sequence[Edit]) -> list[str]:
    """What was done, an edit's kind at a time, in the order of first mention."""
    groups: dict[tuple[EditKind, tuple[str, ...]], list[Edit]] = {}
    for edit in edits:
        groups.setdefault((edit.kind, edit.what), []).append(edit)
    return [_clause(group) for group in groups.values()]


def sentence_of(edit: Edit) -> str:
    """One edit, as a sentence of its own."""
    clause = _clause([edit])
    return f"{clause[0].upper()}{clause[1:]}."


def advice_of(edit: Edit) -> str:
    """What the user or the author of the client can do about it."""
    if edit.kind not in ("system_changed", "block_inserted", "block_replaced"):
        return _WORDS[edit.kind].advice
    special = next((_BY_LINE[kind] for kind in edit.what if kind in _BY_LINE), None)
    return special or _WORDS[edit.kind].advice


def named(edit: Edit) -> str:
    """What exactly, in brackets, as clauses have it."""
    if not edit.what:
        return ""
    named = ", ".join(edit.what[:_MAX_NAMES])
    rest = len(edit.what) - _MAX_NAMES
    more = f" and {rest} more" if rest > 0 else ""
    return f" ({named}{more})"


def tokens(count: int) -> str:
    return f"{count:,} token" if count == 1 else f"{count:,} tokens"


def _clause(edits: Sequence[Edit]) -> str:
    words, first = _WORDS[edits[0].kind], edits[0]
    form = words.one if len(edits) == 1 else words.several
    return form.format(where=_where(edits), what=named(first), count=len(edits))


def _where(edits: Sequence[Edit]) -> str:
    """ "message 3 (tool)", "messages 3-5 and 9", as the request numbers them, or the earlier one what is gone."""
    indices = sorted({index for edit in edits if (index := _index(edit)) is not None})
    if not indices:
        return "the conversation"
    if len(indices) == 1:
        role = edits[0].role
        return f"message {indices[0]}" + (f" ({role})" if role else "")
    runs = _runs(indices)
    return "messages " + (", ".join(runs[:-1]) + " and " + runs[-1] if len(runs) > 1 else runs[0])


def _index(edit: Edit) -> int | None:
    return edit.was if edit.kind in ("message_dropped", "rewound") and edit.was is not None else edit.message


def _runs(indices: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
