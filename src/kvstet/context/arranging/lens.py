"""A request's own JSON, seen as a row of messages in OpenAI's form; what is said otherwise there is written back.

Hosted models are asked in three dialects, and some clients need what they sent byte for byte. So a request is never
translated to be arranged: each text in it, wherever its dialect keeps texts, is one message here, and a text that was
changed is put back into its place. All else stays as it came.

Texts that follow each other in one message of the user, or in one tool's output, are one: clients put reminders beside
what was said, and take them out again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from kvstet.context.message import Message
from kvstet.untrusted import list_of, mapping_of

Body = dict[str, Any]
DialectName = Literal["chat", "messages", "responses"]
Path = tuple[str | int, ...]

_TEXTS = frozenset({"text", "input_text", "output_text"})
_JOINED = frozenset({"user", "tool"})

BETWEEN = "\n\x1e\n"
"""Between the texts of one message. No client sends a record separator on a line of its own."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """One text or one row of calls of a request."""

    message: Message
    """With its text as ``content``, a string; what is neither text nor calls has another content, and stays as it is.
    """
    path: Path
    """Where its text stands in the body, or the first of its parts; of calls, where the message is that makes them."""
    entry: int | None
    """Which of the request's messages (or items) it is of; None for the instructions before them."""
    num_parts: int = 0
    """So many parts of a list are its text; 0 where it is no list."""


@dataclass(frozen=True, slots=True)
class Lens:
    """A body and its leaves, in the order in which the model reads them, the instructions first."""

    dialect: DialectName
    body: Body
    leaves: tuple[Leaf, ...]

    @property
    def messages(self) -> list[Message]:
        return [leaf.message for leaf in self.leaves]

    @property
    def tools(self) -> list[Body]:
        tools = self.body.get("tools")
        return [tool for tool in list_of(tools) if isinstance(tool, dict)] if _are_objects(tools) else []

    def written(self, messages: Sequence[Message], tools: Sequence[Body]) -> Body:
        """The body with these in place of its leaves, one for one, and of its tools; itself where they are the same.

        It shares with the old one whatever is not changed.
        """
        body = self.body
        if list(tools) != self.tools:
            body = {**body, "tools": list(tools)}
        # From the end on: what is put back may have more parts than it had.
        for leaf, said in reversed(list(zip(self.leaves, messages, strict=True))):
            if said != leaf.message:
                body = _with_leaf(body, leaf, said, self.dialect)
        return body


def lens_of(body: Body, dialect: DialectName) -> Lens:
    """Never raises: what is not understood is a leaf that nobody changes."""
    leaves = {"chat": _of_chat, "messages": _of_messages, "responses": _of_responses}[dialect](body)
    return Lens(dialect, body, tuple(leaves))


def entries_of(body: Body, dialect: DialectName) -> list[Any]:
    """The messages, or items, of a request."""
    return list_of(body.get("input" if dialect == "responses" else "messages"))


def with_entries(body: Body, dialect: DialectName, entries: Sequence[Any]) -> Body:
    """The request with these in place of its messages, or items."""
    return {**body, ("input" if dialect == "responses" else "messages"): list(entries)}


def user_entry(text: str, dialect: DialectName) -> Body:
    """A message of the user."""
    if dialect == "responses":
        return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    return {"role": "user", "content": text if dialect == "chat" else [{"type": "text", "text": text}]}


def _of_chat(body: Body) -> Iterator[Leaf]:
    for index, message in enumerate(list_of(body.get("messages"))):
        fields = mapping_of(message)
        role = str(fields.get("role", ""))
        known = {key: fields[key] for key in ("tool_call_id",) if key in fields}
        yield from _texts(fields.get("content"), role, ("messages", index, "content"), index, known)
        if fields.get("tool_calls"):
            calls = {"role": role, "content": "", "tool_calls": fields["tool_calls"]}
            yield Leaf(calls, ("messages", index), index)


def _of_messages(body: Body) -> Iterator[Leaf]:
    yield from _texts(body.get("system"), "system", ("system",), None)
    for index, message in enumerate(list_of(body.get("messages"))):
        fields = mapping_of(message)
        role, content, path = str(fields.get("role", "")), fields.get("content"), ("messages", index, "content")
        if not isinstance(content, list):
            yield from _texts(content, role, path, index)
            continue
        for place, blocks in _runs(list_of(cast("object", content)), role):
            if len(blocks) == 1 and not _is_text(blocks[0]):
                yield from _block(blocks[0], role, (*path, place), index)
            else:
                yield _run(blocks, role, (*path, place), index)


def _block(block: Mapping[str, Any], role: str, path: Path, index: int) -> Iterator[Leaf]:
    match block.get("type"):
        case "tool_result":
            known = {"tool_call_id": str(block.get("tool_use_id"))}
            yield from _texts(block.get("content"), "tool", (*path, "content"), index, known)
        case "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input")}
            yield Leaf({"role": role, "content": "", "tool_calls": [{"function": function}]}, path, index)
        case _:
            yield _opaque(block, role, path, index)


def _of_responses(body: Body) -> Iterator[Leaf]:
    yield from _texts(body.get("instructions"), "system", ("instructions",), None)
    if isinstance(body.get("input"), str):
        yield Leaf({"role": "user", "content": body["input"]}, ("input",), 0)
        return
    for index, item in enumerate(list_of(body.get("input"))):
        fields = mapping_of(item)
        match fields.get("type", "message"):
            case "message":
                yield from _texts(
                    fields.get("content"), str(fields.get("role", "")), ("input", index, "content"), index
                )
            case "function_call":
                function = {"name": fields.get("name"), "arguments": fields.get("arguments")}
                calls = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
                yield Leaf(calls, ("input", index), index)
            case "function_call_output" | "custom_tool_call_output":
                known = {"tool_call_id": str(fields.get("call_id"))}
                yield from _texts(fields.get("output"), "tool", ("input", index, "output"), index, known)
            case _:
                yield _opaque(fields, "assistant", ("input", index), index)


def _texts(
    content: object, role: str, path: Path, entry: int | None, known: Mapping[str, Any] | None = None
) -> Iterator[Leaf]:
    """Leaves of a content, which is a string or has parts."""
    if isinstance(content, str):
        yield Leaf({"role": role, "content": content, **(known or {})}, path, entry)
    elif isinstance(content, list):
        for place, parts in _runs(list_of(cast("object", content)), role):
            if _is_text(parts[0]):
                yield _run(parts, role, (*path, place), entry, known)
            else:
                yield _opaque(parts[0], role, (*path, place), entry)
    elif content is not None:
        yield _opaque(content, role, path, entry)


def _runs(parts: Sequence[object], role: str) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    """Texts that follow each other, where they are one; all others alone. With the place of the first."""
    run: list[Mapping[str, Any]] = []
    for place, part in enumerate(map(mapping_of, parts)):
        if run and not (role in _JOINED and _is_text(part) and _is_text(run[0])):
            yield place - len(run), run
            run = []
        run.append(part)
    if run:
        yield len(parts) - len(run), run


def _run(
    parts: Sequence[Mapping[str, Any]],
    role: str,
    path: Path,
    entry: int | None,
    known: Mapping[str, Any] | None = None,
) -> Leaf:
    text = BETWEEN.join(part["text"] for part in parts)
    return Leaf({"role": role, "content": text, **(known or {})}, path, entry, len(parts))


def _is_text(part: Mapping[str, Any]) -> bool:
    text = part.get("text")
    return str(part.get("type", "text")) in _TEXTS and isinstance(text, str) and BETWEEN not in text


def _opaque(content: object, role: str, path: Path, entry: int | None) -> Leaf:
    """A picture, thinking with a signature, or whatever else is not ours to change. It stands as a digestible value:
    where its marks of the cache go makes no difference."""
    return Leaf({"role": role, "content": [{"type": "opaque", "value": _spelt(content)}]}, path, entry)


def _spelt(content: object) -> str:
    bare = {key: value for key, value in mapping_of(content).items() if key != "cache_control"}
    return json.dumps(bare or content, sort_keys=True, default=str)


def _with_leaf(body: Body, leaf: Leaf, said: Message, dialect: DialectName) -> Body:
    if "tool_calls" not in leaf.message:
        return _with_text(body, leaf, said["content"], "input_text" if dialect == "responses" else "text")
    if dialect == "chat":
        return cast("Body", replaced(body, (*leaf.path, "tool_calls"), said["tool_calls"]))
    arguments = said["tool_calls"][0]["function"]["arguments"]
    return cast("Body", replaced(body, (*leaf.path, "arguments" if dialect == "responses" else "input"), arguments))


def _with_text(body: Body, leaf: Leaf, text: str, kind: str) -> Body:
    texts = text.split(BETWEEN)
    if not leaf.num_parts:
        new = text if len(texts) == 1 else [{"type": kind, "text": each} for each in texts]
        return cast("Body", replaced(body, leaf.path, new))
    *path, place = leaf.path
    parts = cast("list[Body]", _at(body, path))
    old = parts[int(place) : int(place) + leaf.num_parts]
    if len(texts) == len(old):
        changed = [{**part, "text": each} for part, each in zip(old, texts, strict=True)]
    else:
        # A mark of the cache stays at the end.
        changed = [*({"type": old[-1].get("type", kind), "text": each} for each in texts[:-1])]
        changed.append({**old[-1], "text": texts[-1]})
    new_parts = [*parts[: int(place)], *changed, *parts[int(place) + leaf.num_parts :]]
    return cast("Body", replaced(body, tuple(path), new_parts))


def _at(value: Any, path: Sequence[str | int]) -> Any:
    for step in path:
        value = value[step]
    return value


def replaced(value: Any, path: Path, new: object) -> object:
    """A copy in which this stands at the path; what lies beside it is shared."""
    if not path:
        return new
    changed = copy.copy(value)
    changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


def _are_objects(value: object) -> bool:
    return all(isinstance(item, dict) for item in list_of(value))
