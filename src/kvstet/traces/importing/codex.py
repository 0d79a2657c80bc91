"""Sessions of Codex: ``~/.codex/sessions/YYYY/MM/DD/rollout-*.jsonl``.

``response_item`` lines are the conversation. Those of the model that follow each other are one reply; a
``token_usage_record`` or ``token_count`` ends it too. ``compacted`` puts another history in place of all that. Tools
are not in the file, nor the words that ask for a summary; and of the instructions, Codex leaves out what is about tools
that are off. Observed in files of 0.169.0. Older ones do not have the history after a compaction: there, what the user
said and the summary is kept, as Codex did.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kvstet.dialects.usage import responses_usage
from kvstet.dialects.values import Object, integer, items, obj, objects, present, text, to_json
from kvstet.traces.format import Call, Plan
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.steps import Session, Step, seconds_of
from kvstet.traces.reading import PATHS
from kvstet.types import Usage

NAME = "codex"
COMPACTION = "compaction"

_CONVERSATION = frozenset({"session_meta", "response_item", "compacted", "turn_context"})
_KNOWN = frozenset({"event_msg", "world_state"})
"""Other lines, which say nothing that was sent or that is not said elsewhere."""
_NOT_SENT = frozenset({"internal_chat_message_metadata_passthrough", "metadata"})
_CONTEXT = ("<", "# AGENTS.md")
"""How messages of the user's role begin that Codex has written."""


def recognises(file: SessionFile) -> bool:
    return any(text(line.get("type")) in _CONVERSATION and "payload" in line for line in file.sample)


def read(file: SessionFile) -> Session:
    """The session, as a stream."""
    metas = (obj(line.get("payload")) for line in file.sample if line.get("type") == "session_meta")
    version = next((text(meta.get("cli_version")) for meta in metas), "")
    return Session(f"{NAME} {version}".strip(), _Reader(file).steps())


class _Reader:
    """Goes through the lines of one file."""

    def __init__(self, file: SessionFile) -> None:
        self._file = file
        self._instructions = ""
        self._model = ""
        self._effort: str | None = None
        self._items: list[Object] = []
        """The conversation so far."""
        self._asked_at: float | None = None
        """When the last item came that is not the model's."""
        self._num_said_items = 0
        """So many of the items are a reply that is being read."""
        self._said_at: float | None = None
        self._last: Step | None = None
        """The last reply, whose usage may be told later."""

    def steps(self) -> Iterator[Step]:
        for line in self._file.objects():
            payload, at = obj(line.get("payload")), seconds_of(line.get("timestamp"))
            match text(line.get("type")):
                case "response_item":
                    yield from self._item(payload, at)
                case "token_usage_record":
                    yield from self._over(obj(payload.get("usage")))
                case "event_msg":
                    yield from self._event(payload)
                case "compacted":
                    yield from self._over()
                    self._compact(payload)
                case "session_meta":
                    self._instructions = _instructions(payload)
                case "turn_context":
                    self._model, self._effort = text(payload.get("model")), _effort(payload)
                case kind:
                    if kind not in _KNOWN:
                        self._file.pass_over(f"a line of type {kind}")
        yield from self._over()
        if self._last is not None:
            yield self._last

    def _item(self, item: Object, at: float | None) -> Iterator[Step]:
        if is_said(item):
            self._num_said_items += 1
            self._said_at = at
        else:
            yield from self._over()
            self._asked_at = at
        self._items.append(_sent(item))

    def _event(self, event: Object) -> Iterator[Step]:
        match event.get("type"):
            case "token_count":
                yield from self._over(obj(obj(event.get("info")).get("last_token_usage")))
            case "thread_rolled_back":
                yield from self._over()
                self._roll_back(integer(event.get("num_turns")) or 0)
            case _:
                return

    def _over(self, told: Object | None = None) -> Iterator[Step]:
        """The reply is over, if one was being read; what came before it is given out."""
        if self._num_said_items:
            if self._last is not None:
                yield self._last
            self._last = self._step()
            self._num_said_items = 0
        if told and self._last is not None and self._last.usage is None:
            self._last = replace(self._last, usage=usage_of(told))

    def _step(self) -> Step:
        place = len(self._items) - self._num_said_items
        body = {
            "model": self._model,
            "instructions": self._instructions or None,
            "input": self._items[:place],
            "reasoning": {"effort": self._effort} if self._effort is not None else None,
        }
        return Step(
            path=PATHS["responses"],
            body=present(body),
            plan=plan_of(self._items[place:]),
            began=self._asked_at,
            ended=self._said_at,
            model=self._model,
        )

    def _compact(self, payload: Object) -> None:
        if self._last is not None:
            self._last = replace(self._last, label=COMPACTION)
        if payload.get("replacement_history") is not None:
            self._items = [_sent(item) for item in objects(payload["replacement_history"])]
            return
        summary = {"type": "input_text", "text": text(payload.get("message"))}
        kept = [item for item in self._items if not is_said(item) and item.get("type") == "message"]
        self._items = [*kept, {"type": "message", "role": "user", "content": [summary]}]

    def _roll_back(self, num_turns: int) -> None:
        """Forget the last turns of the user."""
        begins = [place for place, item in enumerate(self._items) if _begins_turn(item)]
        if num_turns and begins:
            del self._items[begins[-min(num_turns, len(begins))] :]


def _sent(item: Object) -> Object:
    return {name: value for name, value in item.items() if name not in _NOT_SENT}


def is_said(item: Object) -> bool:
    """Whether an item is the model's."""
    kind = text(item.get("type"))
    return kind == "reasoning" or kind.endswith("_call") or (kind == "message" and item.get("role") == "assistant")


def plan_of(said: Sequence[Object]) -> Plan:
    """What the items of a reply say."""
    return Plan(
        reasoning="".join(_thought(item) for item in said if item.get("type") == "reasoning"),
        text="".join(_joined(item.get("content")) for item in said if item.get("type") == "message"),
        calls=[call for item in said if (call := _call(item)) is not None],
    )


def usage_of(told: Object) -> dict[str, Any] | None:
    """Of a ``token_usage_record``, in the words of the API."""
    return responses_usage(
        Usage(
            num_input_tokens=integer(told.get("input_tokens")),
            num_cache_read_tokens=integer(told.get("cached_input_tokens")),
            num_cache_write_tokens=integer(told.get("cache_write_input_tokens")),
            num_output_tokens=integer(told.get("output_tokens")),
            num_reasoning_tokens=integer(told.get("reasoning_output_tokens")),
        )
    )


def _thought(item: Object) -> str:
    return _joined(item.get("content")) or _joined(item.get("summary"))


def _joined(parts: object) -> str:
    return "".join(text(part.get("text")) for part in objects(parts))


def _call(item: Object) -> Call | None:
    id = text(item.get("call_id")) or text(item.get("id"))
    match item.get("type"):
        case "function_call":
            return Call(name=text(item.get("name")), args_raw=text(item.get("arguments")), id=id)
        case "custom_tool_call":
            return Call(name=text(item.get("name")), args_raw=text(item.get("input")), id=id)
        case "local_shell_call":
            return Call(name="local_shell", args_raw=to_json(item.get("action")), id=id)
        case _:
            return None


def _instructions(meta: Object) -> str:
    """Newer files have an object, older ones a string."""
    return text(obj(meta.get("base_instructions")).get("text")) or text(meta.get("instructions"))


def _effort(context: Object) -> str | None:
    effort: Any = context.get("effort")
    return effort if isinstance(effort, str) else None


def _begins_turn(item: Object) -> bool:
    content = item.get("content")
    said = content if isinstance(content, str) else "".join(text(obj(part).get("text")) for part in items(content)[:1])
    return item.get("type") == "message" and item.get("role") == "user" and not said.startswith(_CONTEXT)
