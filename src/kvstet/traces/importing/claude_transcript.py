"""Claude Code's transcript: a tree of lines, in which the way from a line to its root is the conversation it stands in.

A reply is several lines with one message id, a block in each. Tools that ran side by side answer to different ones of
them, so that not all results lie on the way: those of a reply's lines all belong to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvstet.dialects.values import Object, items, obj, objects, text
from kvstet.traces.importing.claude_requests import blocks_of
from kvstet.traces.importing.steps import seconds_of

_SYNTHETIC = "<synthetic>"
"""The model of replies that Claude Code has written itself: errors, interruptions."""


@dataclass(slots=True)
class Spoken:
    """A reply of the model, of one line or more."""

    lines: list[Object] = field(repr=False)

    @property
    def first(self) -> Object:
        return self.lines[0]

    @property
    def message(self) -> Object:
        """That of the last line: it has the usage."""
        return obj(self.lines[-1].get("message"))

    @property
    def blocks(self) -> list[Any]:
        return [block for line in self.lines for block in blocks_of(obj(line.get("message")))]


class Transcript:
    """The lines of one file, as far as it was read."""

    def __init__(self) -> None:
        self._lines: dict[str, Object] = {}
        """By ``uuid``."""
        self._spoken: dict[str, Spoken] = {}
        """By message id."""
        self._results: dict[str, list[Object]] = {}
        """Lines with tools' results, by the line that they answer to."""
        self._preserved: dict[str, list[str]] = {}
        """What a compaction has kept, by the summary that it stands behind; all by ``uuid``."""

    def __repr__(self) -> str:
        return f"Transcript({len(self._lines)} lines, {len(self._spoken)} replies)"

    def add(self, line: Object) -> None:
        """The next line, of any type."""
        self._lines[text(line.get("uuid"))] = line
        if line.get("type") == "assistant" and not is_synthetic(line):
            self._spoken.setdefault(reply_id(line), Spoken([])).lines.append(line)
        elif _is_result(line):
            self._results.setdefault(text(line.get("parentUuid")), []).append(line)
        elif line.get("subtype") == "compact_boundary":
            kept = obj(obj(line.get("compactMetadata")).get("preservedMessages"))
            self._preserved[text(kept.get("anchorUuid"))] = [text(uuid) for uuid in items(kept.get("uuids"))]

    @property
    def replies(self) -> Iterator[Spoken]:
        return iter(self._spoken.values())

    def asked_at(self, reply: Spoken) -> float | None:
        """When the last thing before a reply was said. Unix time, seconds."""
        before = self._lines.get(text(reply.first.get("parentUuid")), reply.first)
        return seconds_of(before.get("timestamp"))

    def conversation(self, reply: Spoken) -> list[dict[str, Any]]:
        """The messages before a reply. Neighbours of one role are one message, as the API wants it."""
        merged: list[dict[str, Any]] = []
        for role, blocks in self._said_before(reply):
            if merged and merged[-1]["role"] == role:
                merged[-1]["content"].extend(blocks)
            else:
                merged.append({"role": role, "content": list(blocks)})
        return merged

    def _said_before(self, reply: Spoken) -> Iterator[tuple[str, Sequence[Any]]]:
        told: set[str] = set()
        for line in self._way_to(text(reply.first.get("parentUuid"))):
            message, uuid = obj(line.get("message")), text(line.get("uuid"))
            if line.get("type") == "assistant" and not is_synthetic(line):
                if (name := reply_id(line)) in told:
                    continue
                told.add(name)
                yield "assistant", self._spoken[name].blocks
                for result in self._results_of(self._spoken[name]):
                    told.add(text(result.get("uuid")))
                    yield "user", blocks_of(obj(result.get("message")))
            elif line.get("type") == "user" and uuid not in told:
                yield "user", blocks_of(message)

    def _results_of(self, reply: Spoken) -> Iterator[Object]:
        for line in reply.lines:
            yield from self._results.get(text(line.get("uuid")), ())

    def _way_to(self, uuid: str) -> list[Object]:
        """From the root, which is also where a compaction begins anew."""
        way: dict[str, Object] = {}
        while uuid not in way and (line := self._lines.get(uuid)) is not None:
            way[uuid] = line
            uuid = text(line.get("parentUuid"))
        return [each for line in reversed(way.values()) for each in (line, *self._kept_behind(line))]

    def _kept_behind(self, line: Object) -> Iterator[Object]:
        for uuid in self._preserved.get(text(line.get("uuid")), ()):
            if (kept := self._lines.get(uuid)) is not None:
                yield kept


def reply_id(line: Object) -> str:
    """Of the message that an assistant's line is a part of."""
    return text(obj(line.get("message")).get("id")) or text(line.get("uuid"))


def is_synthetic(line: Object) -> bool:
    return obj(line.get("message")).get("model") == _SYNTHETIC or line.get("isApiErrorMessage") is True


def _is_result(line: Object) -> bool:
    content = objects(obj(line.get("message")).get("content"))
    return line.get("type") == "user" and any(block.get("type") == "tool_result" for block in content)
