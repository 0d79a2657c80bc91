"""Sessions of opencode: ``~/.local/share/opencode/opencode.db`` of 1.2 and later, the folder ``storage`` of earlier
versions, and what ``opencode export`` writes.

Each of the model's messages was one request, and carries what came of its tools. The system prompt and the schemas of
tools are not stored, nor the requests for titles and summaries. How messages are put together, and what is left of them
after a compaction, is as 1.18.33 does it with an OpenAI-compatible provider.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import merge
from typing import Any

from kvstet.dialects.usage import chat_usage
from kvstet.dialects.values import Object, integer, obj, text
from kvstet.traces.format import Call, Plan
from kvstet.traces.importing.chat import (
    Message,
    arguments_of,
    assistant_message,
    image_part,
    text_part,
    tool_message,
    user_message,
)
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.opencode_storage import Conversation, Said, family_of, is_export, is_storage
from kvstet.traces.importing.steps import UNSEEN_SUMMARY, Session, Step, seconds_of
from kvstet.traces.reading import PATHS
from kvstet.types import Usage

NAME = "opencode"

_ASKED = "What did we do so far?"
_RAN = "The following tool was executed by the user"
_CLEARED = "[Old tool result content cleared]"
_INTERRUPTED = "[Tool execution was interrupted]"
_UNSAID = frozenset({"step-start", "reasoning"})
_AS_TEXT = frozenset({"text/plain", "application/x-directory"})
"""Files that were read into texts of their own."""


def recognises(file: SessionFile) -> bool:
    return is_storage(file) or is_export(file)


def read(file: SessionFile) -> Session:
    """A session and its sub-agents', by time. InvalidRequest: there are several, and none was named."""
    family = family_of(file)
    steps = merge(*(_steps(file, each) for each in family), key=lambda step: step.began or 0.0)
    return Session(f"{NAME} {text(family[0].info.get('version'))}".strip(), steps)


def _steps(file: SessionFile, conversation: Conversation) -> Iterator[Step]:
    label = "sub-agent" if conversation.parent else ""
    for place, said in enumerate(conversation.messages):
        if said.role != "assistant":
            continue
        if said.info.get("summary") is True:
            file.pass_over(UNSEEN_SUMMARY)
            continue
        before = remaining(conversation.messages[:place])
        for number, parts in enumerate(_rounds(said.parts)):
            sent = [message for each in before for message in messages_of(each, _asked_at(said))]
            earlier = [part for each in _rounds(said.parts)[:number] for part in each]
            yield _step(said, parts, [*sent, *_assistant(earlier, _asked_at(said))], label)


def _step(said: Said, parts: Sequence[Object], sent: Sequence[Message], label: str) -> Step:
    failed, plan = obj(said.info.get("error")), plan_of(parts)
    reason = text(obj(failed.get("data")).get("message")) or text(failed.get("name"))
    finish = next((part for part in parts if part.get("type") == "step-finish"), said.info)
    # After a refusal that it gets over, opencode leaves an empty message without an error.
    is_reply = plan != Plan() or bool(said.info.get("finish"))
    model = text(said.info.get("modelID"))
    return Step(
        path=PATHS["chat"],
        body={"model": model, "messages": list(sent)},
        plan=plan if is_reply else None,
        began=_asked_at(said),
        ended=seconds_of(obj(said.info.get("time")).get("completed")),
        model=model,
        usage=_usage(obj(finish.get("tokens"))) if is_reply else None,
        status=200 if is_reply else integer(obj(failed.get("data")).get("statusCode")) or 500,
        error=reason if failed else None,
        label=label,
    )


def _usage(told: Object) -> dict[str, Any] | None:
    cache, reasoning = obj(told.get("cache")), integer(told.get("reasoning"))
    fresh, said = integer(told.get("input")), integer(told.get("output"))
    read, write = integer(cache.get("read")), integer(cache.get("write"))
    return chat_usage(
        Usage(
            num_input_tokens=None if fresh is None else fresh + (read or 0) + (write or 0),
            num_cache_read_tokens=read,
            num_cache_write_tokens=write,
            num_output_tokens=None if said is None else said + (reasoning or 0),
            num_reasoning_tokens=reasoning,
        )
    )


def _asked_at(said: Said) -> float | None:
    return seconds_of(obj(said.info.get("time")).get("created"))


def _rounds(parts: Sequence[Object]) -> list[list[Object]]:
    """The parts of each request: a ``step-start`` begins the next one's."""
    rounds: list[list[Object]] = [[]]
    for part in parts:
        if part.get("type") == "step-start" and any(each.get("type") != "step-start" for each in rounds[-1]):
            rounds.append([])
        rounds[-1].append(part)
    return rounds


def remaining(messages: Sequence[Said]) -> list[Said]:
    """Those that are still sent: from the last compaction on, with what it kept behind its summary."""
    summed_up = {text(said.info.get("parentID")) for said in messages if _is_summary(said)}
    begin = next(
        (i for i in reversed(range(len(messages))) if _compaction(messages[i]) and messages[i].id in summed_up), None
    )
    if begin is None:
        return list(messages)
    asked = messages[begin]
    end = next(i for i, said in enumerate(messages) if _is_summary(said) and said.info.get("parentID") == asked.id) + 1
    tail = text((_compaction(asked) or {}).get("tail_start_id"))
    kept = next((i for i, said in enumerate(messages[:begin]) if said.id == tail), begin)
    return [*messages[begin:end], *messages[kept:begin], *messages[end:]]


def _is_summary(said: Said) -> bool:
    info = said.info
    return (
        said.role == "assistant" and info.get("summary") is True and bool(info.get("finish")) and not info.get("error")
    )


def _compaction(said: Said) -> Object | None:
    found = (part for part in said.parts if part.get("type") == "compaction")
    return next(found, None) if said.role == "user" else None


def messages_of(said: Said, at: float | None) -> list[Message]:
    """A message of the session as it was sent at this Unix time, seconds: outputs that were pruned later are whole."""
    if said.role == "user":
        parts = [sent for part in said.parts if (sent := _user_part(part)) is not None]
        return [user_message(parts)] if parts else []
    if said.info.get("error") and not _was_interrupted(said):
        return []
    return [message for parts in _rounds(said.parts) for message in _assistant(parts, at)]


def _was_interrupted(said: Said) -> bool:
    """A reply that the user broke off is kept, if it said anything."""
    is_aborted = obj(said.info.get("error")).get("name") == "MessageAbortedError"
    return is_aborted and any(text(part.get("type")) not in _UNSAID for part in said.parts)


def _user_part(part: Object) -> Message | None:
    match part.get("type"):
        case "text" if part.get("ignored") is not True and part.get("text"):
            return text_part(text(part["text"]))
        case "compaction":
            return text_part(_ASKED)
        case "subtask":
            return text_part(_RAN)
        case "file" if text(part.get("mime")) not in _AS_TEXT:
            return _file(part)
        case _:
            return None


def _file(part: Object) -> Message:
    mime, url = text(part.get("mime")), text(part.get("url"))
    if mime.startswith("image/") and url.startswith("data:"):
        return image_part(mime, url.partition(",")[2])
    return text_part(f"[Attached {mime}: {text(part.get('filename')) or 'file'}]")


def _assistant(parts: Sequence[Object], at: float | None) -> list[Message]:
    plan = plan_of(parts)
    if plan == Plan():
        return []
    results = [part for part in parts if part.get("type") == "tool"]
    return [assistant_message(plan), *(tool_message(text(part.get("callID")), output_of(part, at)) for part in results)]


def output_of(part: Object, at: float | None) -> str:
    """What a tool's part says about the call, at this Unix time in seconds; None: at the end of all."""
    state = obj(part.get("state"))
    match state.get("status"):
        case "completed":
            cleared = seconds_of(obj(state.get("time")).get("compacted"))
            return _CLEARED if cleared is not None and (at is None or cleared <= at) else text(state.get("output"))
        case "error":
            metadata = obj(state.get("metadata"))
            output = metadata.get("output") if metadata.get("interrupted") is True else None
            return output if isinstance(output, str) else text(state.get("error"))
        case _:
            return _INTERRUPTED


def plan_of(parts: Sequence[Object]) -> Plan:
    """What the parts of a reply say."""
    return Plan(
        reasoning="".join(text(part.get("text")) for part in parts if part.get("type") == "reasoning"),
        text="".join(text(part.get("text")) for part in parts if part.get("type") == "text"),
        calls=[_call(part) for part in parts if part.get("type") == "tool"],
    )


def _call(part: Object) -> Call:
    given: Any = obj(part.get("state")).get("input")
    return Call(name=text(part.get("tool")), args_raw=arguments_of(given), id=text(part.get("callID")))
