"""Sessions of Claude Code: ``~/.claude/projects/<folder>/<session>.jsonl``, and its sub-agents' beside it.

From 2.1 on, files note each request that was sent (`kvstet.traces.importing.claude_requests`): all of it comes back but
``metadata`` and ``stream``. Of older files the transcript is taken: system prompt, tools and reminders are not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from heapq import merge
from itertools import count
from typing import Any

from kvstet.dialects.values import Object, obj, objects, optional_text, text, to_json
from kvstet.traces.format import Call, Plan
from kvstet.traces.importing.claude_requests import RequestNotes, headers_of
from kvstet.traces.importing.claude_transcript import Spoken, Transcript
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.steps import UNSEEN_SUMMARY, Session, Step, seconds_of
from kvstet.traces.reading import PATHS

NAME = "claude-code"

UNKNOWN_PARTS = "a noted request of which parts are not in the file"

_TRANSCRIPT = frozenset({"user", "assistant", "system", "attachment", "progress", "summary"})
_SAID = frozenset({"user", "assistant"})
_BOOKKEEPING = frozenset(
    {
        "queue-operation",
        "file-history-snapshot",
        "file-history-delta",
        "last-prompt",
        "cost-state",
        "tools-used",
        "mode",
    }
    | {
        "atis-latch",
        "custom-title",
        "ai-title",
        "tag",
        "permission-mode",
        "agent-name",
        "agent-color",
        "worktree-state",
    }
)
"""Known, and nothing that was ever sent."""


def recognises(file: SessionFile) -> bool:
    return any(
        text(line.get("type")) in _TRANSCRIPT | {"queue-operation", "api-request-shape"}
        and "sessionId" in line
        and ("uuid" in line or "operation" in line or "shape" in line)
        for line in file.sample
    )


def read(file: SessionFile) -> Session:
    """The session and, by time, the steps of its sub-agents. InvalidRequest: it cannot be read."""
    version = next((found for line in file.sample if (found := optional_text(line.get("version")))), "")
    others = sorted((file.path.parent / file.path.name.partition(".")[0] / "subagents").glob("*.jsonl*"))
    number = count()
    every = [_numbered(_steps(each), number) for each in (file, *map(file.beside, others))]
    steps = (step for _, _, step in merge(*every, key=lambda entry: entry[:2]))
    return Session(f"{NAME} {version}".strip(), steps)


def _numbered(steps: Iterator[Step], number: count[int]) -> Iterator[tuple[float, int, Step]]:
    """With what they are ordered by: a step without a time follows the one before it."""
    now = 0.0
    for step in steps:
        now = max(now, step.began or now)
        yield now, next(number), step


def _steps(file: SessionFile) -> Iterator[Step]:
    notes, transcript, noted = RequestNotes(), Transcript(), list[Object]()
    for line in file.objects():
        match text(line.get("type")):
            case "api-request":
                notes.note_request(line)
                noted.append(line)
            case "api-request-shape":
                notes.note_shape(line)
            case "api-request-blob":
                notes.note_blob(line)
            case kind if kind in _TRANSCRIPT:
                transcript.add(line)
                if line.get("subtype") == "compact_boundary":
                    file.pass_over(UNSEEN_SUMMARY)
                if kind in _SAID:
                    notes.note_transcript(obj(line.get("message")))
            case kind:
                if kind not in _BOOKKEEPING:
                    file.pass_over(f"a line of type {kind}")
    yield from _told(file, notes, transcript, noted)


def _told(file: SessionFile, notes: RequestNotes, transcript: Transcript, noted: Sequence[Object]) -> Iterator[Step]:
    """Steps by time. Bodies are made one at a time: together they are much longer than the file."""
    answers = {text(reply.first.get("requestRef")): reply for reply in transcript.replies}
    names = {text(line.get("id")) for line in noted}
    others = [reply for reply in transcript.replies if text(reply.first.get("requestRef")) not in names]
    for each in sorted([*noted, *others], key=_began):
        if isinstance(each, Spoken):
            yield _transcript_step(transcript, each)
            continue
        reply, body = answers.get(text(each.get("id"))), notes.body_of(each)
        if body is not None:
            yield _noted_step(each, body, reply)
            continue
        file.pass_over(UNKNOWN_PARTS)
        if reply is not None:
            yield _transcript_step(transcript, reply)


def _began(each: Object | Spoken) -> float:
    line = each.first if isinstance(each, Spoken) else each
    return seconds_of(line.get("timestamp")) or 0.0


def _noted_step(line: Object, body: dict[str, Any], reply: Spoken | None) -> Step:
    step = Step(
        path=PATHS["messages"],
        headers=headers_of(line),
        body=body,
        began=seconds_of(line.get("timestamp")),
        label=text(line.get("querySource")),
    )
    return step if reply is None else _answered(step, reply)


def _transcript_step(transcript: Transcript, reply: Spoken) -> Step:
    body = {"model": text(reply.message.get("model")), "messages": transcript.conversation(reply)}
    label = "sub-agent" if reply.first.get("isSidechain") is True else ""
    return _answered(Step(path=PATHS["messages"], body=body, began=transcript.asked_at(reply), label=label), reply)


def _answered(step: Step, reply: Spoken) -> Step:
    message = reply.message
    return replace(
        step,
        plan=plan_of(reply.blocks),
        ended=seconds_of(reply.lines[-1].get("timestamp")),
        model=text(message.get("model")),
        usage=obj(message.get("usage")) or None,
    )


def plan_of(blocks: Sequence[Any]) -> Plan:
    """What content blocks say."""
    known = objects(blocks)
    return Plan(
        reasoning="".join(text(block.get("thinking")) for block in known if block.get("type") == "thinking"),
        text="".join(text(block.get("text")) for block in known if block.get("type") == "text"),
        calls=[_call(block) for block in known if block.get("type") == "tool_use"],
    )


def _call(block: Object) -> Call:
    arguments = block.get("input")
    return Call(
        name=text(block.get("name")), args_raw=to_json({} if arguments is None else arguments), id=text(block.get("id"))
    )
