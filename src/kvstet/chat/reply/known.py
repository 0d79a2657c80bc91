"""What cannot be derived from a template, written down by hand. This is the whole list.

Each entry is keyed by a telling substring of the template:

- ``<|channel|>`` and ``<|message|>``: gpt-oss, in `kvstet.chat.reply.harmony`. Headers of its messages vary in form.
- ``<|tool_list_start|>``: LFM2. Its template prints no calls; the model writes them as text of its own.
- ``<|tool_call|> followed by a JSON list``: Granite 3.3, the same.
- ``<|tool_calls_section_begin|>``: Kimi K2, where the template prints nothing but ids, which the model writes as
  ``functions.NAME:NUMBER``.
- Pairs of tags around reasoning, for templates that drop reasoning from the history and never print it.
- Markers that end a turn and appear in a template in other places only.
"""

from __future__ import annotations

import re

from kvstet.chat.reply.syntax import (
    CallSyntax,
    JsonArguments,
    ListedCalls,
    MarkedCalls,
    Marker,
    ObjectCalls,
    PythonCalls,
    Reasoning,
)

HERMES = ListedCalls(ObjectCalls(), (Marker(("<tool_call>",), "\n"),), Marker(("</tool_call>",)))
"""What models are told whose template knows no tools (see `kvstet.chat.fit`)."""

_CALLS: tuple[tuple[str, CallSyntax], ...] = (
    (
        "<|tool_list_start|>",
        ListedCalls(PythonCalls(), (Marker(("<|tool_call_start|>",)),), Marker(("<|tool_call_end|>",))),
    ),
    ("<|tool_call|> followed by a JSON list", ListedCalls(ObjectCalls(), (Marker(("<|tool_call|>",)),), Marker())),
    (
        "<|tool_calls_section_begin|>",
        MarkedCalls(
            section_open=Marker(("<|tool_calls_section_begin|>",)),
            call_open=Marker(("<|tool_call_begin|>",)),
            id_before="",
            name_prefix="functions.",
            id_after=":",
            name_close=Marker(("<|tool_call_argument_begin|>",)),
            arguments=JsonArguments(),
            call_close=Marker(("<|tool_call_end|>",)),
            section_close=Marker(("<|tool_calls_section_end|>",)),
        ),
    ),
)

_REASONING: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
)

_ENDS = ("<|eom_id|>", "<|endoftext|>")


def known_calls(source: str) -> CallSyntax | None:
    """How the model of this template writes calls."""
    return next((syntax for substring, syntax in _CALLS if substring in source), None)


def named_reasoning(source: str) -> Reasoning | None:
    """Tags that this template names."""
    for start, stop in _REASONING:
        if start in source or stop in source:
            # What stands for no reasoning tells nothing about the space around reasoning.
            shown = re.sub(f"{re.escape(start)}{_NEWLINES}{re.escape(stop)}", "", source)
            default = "\n" if start == "<think>" and start not in shown else ""
            behind_start = _longest(f"{re.escape(start)}{_NEWLINES}", shown) or default
            before_stop = _longest(f"{_NEWLINES}{re.escape(stop)}", shown) or behind_start
            behind_stop = _longest(f"{re.escape(stop)}{_NEWLINES}", shown) or 2 * behind_start
            return Reasoning(Marker((start,), "", behind_start), Marker((stop,), before_stop, behind_stop), "named")
    return None


_NEWLINES = r"((?:\\n|\n){0,2})"
"""As a template's string literals spell them."""


def _longest(pattern: str, source: str) -> str:
    """The longest row of newlines that the pattern finds."""
    found = (spaces.replace("\\n", "\n") for spaces in re.findall(pattern, source))
    return max(found, key=len, default="")


def known_ends(source: str) -> tuple[str, ...]:
    return tuple(end for end in _ENDS if end in source)


def speaks_harmony(source: str) -> bool:
    return "<|channel|>" in source and "<|message|>" in source
