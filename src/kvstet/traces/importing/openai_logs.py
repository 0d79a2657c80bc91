"""Logs of requests to OpenAI-like APIs: JSON lines of several makes, or what a browser or proxy saves as HAR.

* ``{"request": {...}, "response": {...}}``, objects or JSON texts, with ``path`` or ``url``, ``timestamp``...
* ``{"messages": [...]}``: an example for fine-tuning. Each of its replies becomes a step.
* ``{"custom_id", "method", "url", "body"}``: batches. Lines of the output, ``{"custom_id", "response": {"body"}}``, may
  stand in the same file, before or behind.
* HAR 1.2: ``{"log": {"entries": [...]}}``. Replies may be streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from kvstet.dialects.dialect import dialect_of_path
from kvstet.dialects.values import Object, from_json, integer, number, obj, objects, text, to_json
from kvstet.traces.answers import Answer, response_of
from kvstet.traces.importing.chat import plan_of
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.steps import Session, Step, seconds_of
from kvstet.traces.reading import PATHS

NAME = "openai-logs"

NO_REQUEST = "a line that is no request for a reply"

_TIMES = ("timestamp", "created_at", "created", "time", "startedDateTime")
_FIRST_MILLISECOND = 1e11
"""Times from here on are in milliseconds: as seconds, they would be in the year 5138."""


def recognises(file: SessionFile) -> bool:
    return any(_is_known(line) for line in file.sample)


def _is_known(line: Object) -> bool:
    match line:
        case {"request": dict() | str()} | {"messages": [*_]} | {"custom_id": str()} | {"log": {"entries": [*_]}}:
            return True
        case _:
            return False


def read(file: SessionFile) -> Session:
    """The file, as a stream; of a batch, the replies are looked for first. HAR is read as a whole."""
    if obj(file.sample[0].get("log") if file.sample else None).get("entries") is not None:
        return Session("HAR", _of_har(file, obj(file.document.get("log"))))
    return Session(NAME, _of_lines(file))


def _of_lines(file: SessionFile) -> Iterator[Step]:
    answers = {text(line["custom_id"]): line for line in SessionFile(file.path).objects() if _is_output(line)}
    for line in file.objects():
        if "custom_id" in line and "body" in line:
            yield from _batched(file, line, obj(answers.get(text(line["custom_id"]))))
        elif "request" in line:
            yield from _paired(file, line)
        elif "messages" in line:
            yield from _example(line)
        elif not _is_output(line):
            file.pass_over(NO_REQUEST)


def _is_output(line: Object) -> bool:
    return isinstance(line.get("custom_id"), str) and isinstance(line.get("response"), dict)


def _batched(file: SessionFile, line: Object, output: Object) -> Iterator[Step]:
    answer = obj(output.get("response"))
    answered = _answer(text(line.get("url")) or PATHS["chat"], answer.get("body"), answer.get("status_code"))
    yield from _exchange(file, obj(line["body"]), answered, _time(line))


def _paired(file: SessionFile, line: Object) -> Iterator[Step]:
    sent = _object(line["request"])
    path = text(line.get("path")) or text(line.get("url")) or usual_path(sent)
    yield from _exchange(file, sent, _answer(path, line.get("response"), line.get("status")), _time(line))


def _exchange(file: SessionFile, sent: Object, answer: Answer, at: float | None) -> Iterator[Step]:
    dialect = dialect_of_path(answer.path)
    if dialect is None or not sent or answer.path.partition("?")[0].endswith("/count_tokens"):
        file.pass_over(NO_REQUEST)
        return
    response = response_of(answer, 0, 0.0)
    yield Step(
        path=answer.path if answer.path.startswith("/") else dialect.path,
        body=sent,
        plan=response.plan,
        began=at,
        model=response.model or text(sent.get("model")),
        usage=response.usage,
        status=response.status,
        error=response.error_raw,
    )


def _answer(path: str, answer: object, status: object) -> Answer:
    """``answer`` is an object, or JSON text."""
    content = answer if isinstance(answer, str) else to_json(answer) if answer is not None else ""
    return Answer(path, integer(status) or 200, content=content.encode("utf-8", "surrogatepass"))


def _example(line: Object) -> Iterator[Step]:
    """Of a conversation that is told as a whole: a step for each reply; what follows the last is asked, too."""
    messages = objects(line.get("messages"))
    others = {name: line[name] for name in ("model", "tools", "functions", "parallel_tool_calls") if name in line}
    for place, message in enumerate(messages):
        if message.get("role") == "assistant":
            body = {**others, "messages": messages[:place]}
            yield Step(path=PATHS["chat"], body=body, plan=plan_of(message), model=text(line.get("model")))
    if messages and messages[-1].get("role") != "assistant":
        yield Step(path=PATHS["chat"], body={**others, "messages": messages}, began=_time(line))


def _of_har(file: SessionFile, log: Object) -> Iterator[Step]:
    for entry in objects(log.get("entries")):
        request, response = obj(entry.get("request")), obj(entry.get("response"))
        path = "/" + text(request.get("url")).partition("://")[2].partition("/")[2]
        content = obj(response.get("content"))
        answer = _answer(path, text(content.get("text")), response.get("status"))
        sent = _object(obj(request.get("postData")).get("text"))
        yield from _exchange(file, sent, replace(answer, content_type=text(content.get("mimeType"))), _time(entry))


def _object(value: object) -> Object:
    """An object, or the JSON text of one."""
    try:
        return obj(from_json(value) if isinstance(value, str) else value)
    except ValueError:
        return {}


def usual_path(body: Object) -> str:
    """Where a body is sent to that comes without a path."""
    return PATHS["responses" if "input" in body and "messages" not in body else "chat"]


def _time(line: Object) -> float | None:
    values: list[Any] = [line[name] for name in _TIMES if line.get(name) is not None]
    for value in values:
        seconds = number(value)
        if seconds is not None and seconds < _FIRST_MILLISECOND:
            return seconds
        if (found := seconds_of(value)) is not None:
            return found
    return None
