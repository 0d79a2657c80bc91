"""Sessions of pi: ``~/.pi/agent/sessions/<folder>/<time>_<id>.jsonl``, after its ``docs/session-format.md``.

The entries are a tree, and the way from an entry to its root is its context, but for what a compaction has summed up or
a ``context_edit`` has changed. System prompt and tools are in the file, from 0.8x on. The requests that ask for a
summary are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kvstet.dialects.usage import chat_usage
from kvstet.dialects.values import Object, integer, obj, objects, text
from kvstet.traces.format import Call, Plan
from kvstet.traces.importing.chat import (
    Message,
    arguments_of,
    assistant_message,
    image_part,
    text_of,
    text_part,
    tool_message,
    user_message,
)
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.steps import UNSEEN_SUMMARY, Session, Step, seconds_of, status_in
from kvstet.traces.reading import PATHS
from kvstet.types import Usage

NAME = "pi"

_COMPACTED = (
    "The conversation history before this point was compacted into the following summary:\n\n<summary>\n{}\n</summary>"
)
_BRANCH = "The following is a summary of a branch that this conversation came back from:\n\n<summary>\n{}</summary>"
_IMAGES = "Attached image(s) from tool result:"
_UNSENT = frozenset({"error", "aborted"})
"""Replies that ended so do not come back."""
_TOOL_FIELDS = ("name", "description", "parameters")
_KNOWN = frozenset(
    {"session", "message", "model_change", "thinking_level_change", "usage", "compaction", "context_edit", "custom"}
    | {"branch_summary", "custom_message", "label", "session_info"}
)


def recognises(file: SessionFile) -> bool:
    return any(line.get("type") == "session" and "cwd" in line and "timestamp" in line for line in file.sample[:1])


def read(file: SessionFile) -> Session:
    """The session. A file does not say which version of pi wrote it."""
    return Session(NAME, _steps(file))


def _steps(file: SessionFile) -> Iterator[Step]:
    tree = _Tree()
    for line in file.objects():
        if text(line.get("type")) not in _KNOWN:
            file.pass_over(f"an entry of type {line.get('type')}")
            continue
        entry = tree.add(line)
        message = obj(entry.get("message"))
        if entry.get("type") == "message" and message.get("role") == "assistant":
            yield _step(entry, message, tree.way_to(text(entry.get("parentId"))))
        elif text(entry.get("type")) in ("compaction", "branch_summary") and entry.get("fromHook") is not True:
            file.pass_over(UNSEEN_SUMMARY)


class _Tree:
    """Entries by their ids; those of the first version have none, and follow each other."""

    def __init__(self) -> None:
        self._entries: dict[str, Object] = {}
        self._last = ""

    def add(self, entry: Object) -> Object:
        if not isinstance(entry.get("id"), str):
            entry = {**entry, "id": f"#{len(self._entries)}", "parentId": self._last}
        if entry.get("type") != "session":
            self._last = entry["id"]
            self._entries[self._last] = entry
        return entry

    def way_to(self, id: str) -> list[Object]:
        way: dict[str, Object] = {}
        while id not in way and (entry := self._entries.get(id)) is not None:
            way[id] = entry
            id = text(entry.get("parentId"))
        return list(way.values())[::-1]


def _step(entry: Object, message: Object, way: Sequence[Object]) -> Step:
    failed = text(message.get("errorMessage")) if message.get("stopReason") == "error" else ""
    asked = [
        line for line in way if text(line.get("type")) in ("message", "compaction", "branch_summary", "custom_message")
    ]
    return Step(
        path=PATHS["chat"],
        body=_body(text(message.get("model")), way),
        plan=None if failed else plan_of(message),
        began=seconds_of(message.get("timestamp")) or (seconds_of(asked[-1].get("timestamp")) if asked else None),
        ended=seconds_of(entry.get("timestamp")),
        model=text(message.get("model")),
        usage=_usage(obj(message.get("usage"))),
        status=status_in(failed) if failed else 200,
        error=failed or None,
    )


def _usage(told: Object) -> dict[str, Any] | None:
    fresh, read, write = (integer(told.get(name)) for name in ("input", "cacheRead", "cacheWrite"))
    return chat_usage(
        Usage(
            num_input_tokens=None if fresh is None else fresh + (read or 0) + (write or 0),
            num_cache_read_tokens=read,
            num_cache_write_tokens=write,
            num_output_tokens=integer(told.get("output")),
            num_reasoning_tokens=integer(told.get("reasoning")),
        )
    )


def _body(model: str, way: Sequence[Object]) -> dict[str, Any]:
    system, tools = _loadout(way)
    edits = {text(entry.get("targetId")): entry for entry in way if entry.get("type") == "context_edit"}
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for entry in _selected(way):
        messages.extend(_messages_of(_edited(entry, edits.get(text(entry.get("id"))))))
    body: dict[str, Any] = {"model": model, "messages": messages}
    return {**body, "tools": [_function(tool) for tool in tools]} if tools else body


def _function(tool: Object) -> Message:
    return {"type": "function", "function": {name: tool[name] for name in _TOOL_FIELDS if name in tool}}


def _loadout(way: Sequence[Object]) -> tuple[str, list[Object]]:
    """System prompt and tools, which later system messages change."""
    content, sections, tools = "", dict[str, str](), dict[str, Object]()
    for entry in way:
        message = obj(entry.get("systemMessage") if entry.get("type") == "compaction" else entry.get("message"))
        if message.get("role") != "system":
            continue
        if entry.get("type") == "compaction":
            content, sections, tools = "", {}, {}
        content = text_of(message.get("content")) or content
        sections.update({name: text(value) for name, value in obj(message.get("sections")).items()})
        for tool in objects(message.get("toolsRemoved")):
            tools.pop(text(tool.get("name")), None)
        tools.update({text(tool.get("name")): tool for tool in objects(message.get("toolsAdded"))})
    return "\n\n".join(part for part in (content, *sections.values()) if part), list(tools.values())


def _selected(way: Sequence[Object]) -> list[Object]:
    """The entries that are still sent: after a compaction, its summary, what it has kept and what follows."""
    places = [place for place, entry in enumerate(way) if entry.get("type") == "compaction"]
    if not places:
        return list(way)
    last = places[-1]
    first_kept = text(way[last].get("firstKeptEntryId"))
    begin = next((place for place, entry in enumerate(way[:last]) if entry.get("id") == first_kept), last)
    return [way[last], *(entry for entry in way[begin:last] if entry.get("type") != "compaction"), *way[last + 1 :]]


def _edited(entry: Object, edit: Object | None) -> Object:
    """What a ``context_edit`` leaves of an entry: other content, or nothing."""
    if edit is None:
        return entry
    replacement = edit.get("replacement")
    if replacement is None:
        return {}
    if entry.get("type") == "message":
        return {**entry, "message": {**obj(entry.get("message")), "content": replacement}}
    return {**entry, "content": replacement}


def _messages_of(entry: Object) -> list[Message]:
    match entry.get("type"):
        case "message":
            return _chat(obj(entry.get("message")))
        case "custom_message":
            return [_said(entry.get("content"))]
        case "compaction":
            return [_said(_COMPACTED.format(text(entry.get("summary"))))]
        case "branch_summary":
            return [_said(_BRANCH.format(text(entry.get("summary"))))]
        case _:
            return []


def _chat(message: Object) -> list[Message]:
    match message.get("role"):
        case "user" | "custom":
            return [_said(message.get("content"))]
        case "assistant":
            return [] if text(message.get("stopReason")) in _UNSENT else [assistant_message(plan_of(message))]
        case "toolResult":
            return _result(message)
        case "bashExecution" if message.get("excludeFromContext") is not True:
            return [_said(_executed(message))]
        case _:
            return []


def _said(content: object) -> Message:
    """As the user's."""
    return user_message(_parts(content))


def _parts(content: object) -> list[Message]:
    if isinstance(content, str):
        return [text_part(content)]
    return [
        image_part(text(part.get("mimeType")), text(part.get("data")))
        if part.get("type") == "image"
        else text_part(text(part.get("text")))
        for part in objects(content)
    ]


def _result(message: Object) -> list[Message]:
    parts = _parts(message.get("content"))
    said = "\n".join(part["text"] for part in parts if part["type"] == "text")
    images = [part for part in parts if part["type"] != "text"]
    result = tool_message(text(message.get("toolCallId")), said)
    return [result, user_message([text_part(_IMAGES), *images])] if images else [result]


def _executed(message: Object) -> str:
    """A command of the user's own."""
    output, code = text(message.get("output")), message.get("exitCode")
    said = f"Ran `{text(message.get('command'))}`\n" + (f"```\n{output}\n```" if output else "(no output)")
    if message.get("cancelled") is True:
        return f"{said}\n\n(command cancelled)"
    return f"{said}\n\nCommand exited with code {code}" if code not in (None, 0) else said


def plan_of(message: Object) -> Plan:
    """What an assistant's message says."""
    content = message.get("content")
    blocks = objects(content) if not isinstance(content, str) else [text_part(content)]
    return Plan(
        reasoning="".join(text(block.get("thinking")) for block in blocks if block.get("type") == "thinking"),
        text="".join(text(block.get("text")) for block in blocks if block.get("type") == "text"),
        calls=[_call(block) for block in blocks if block.get("type") == "toolCall"],
    )


def _call(block: Object) -> Call:
    return Call(name=text(block.get("name")), args_raw=arguments_of(block.get("arguments")), id=text(block.get("id")))
