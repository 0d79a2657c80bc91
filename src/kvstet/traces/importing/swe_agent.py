"""Trajectories of SWE-agent, ``*.traj``.

From 1.0 on, a step holds the messages that were sent, as ``query``. Before, ``history`` is what was said in all, and
what a history processor left out of a request is not known. Demonstrations are part of it. Tools' schemas, times and
usage are not in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kvstet.dialects.values import Object, from_json, items, obj, objects, text
from kvstet.traces.importing.chat import plan_of
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.steps import Session, Step
from kvstet.traces.reading import PATHS

NAME = "swe-agent"

_SENT = ("role", "content", "name", "tool_calls", "tool_call_id")


def recognises(file: SessionFile) -> bool:
    return any(
        any("role" in said for said in objects(line.get("history")))
        and ("trajectory" in line or "agent" in _first(line))
        for line in file.sample[:1]
    )


def _first(document: Object) -> Object:
    return objects(document.get("history"))[0]


def read(file: SessionFile) -> Session:
    """The whole file: it is one document."""
    document = file.document
    version = text(obj(document.get("info")).get("swe_agent_version"))
    return Session(f"{NAME} {version}".strip(), _steps(document))


def _steps(document: Object) -> Iterator[Step]:
    history, model = objects(document.get("history")), _model(document)
    replies = [place for place, said in enumerate(history) if _is_reply(said)]
    queries = [objects(step.get("query")) for step in objects(document.get("trajectory"))]
    if len(queries) != len(replies):
        # Attempts that were begun anew, say: which query a reply belongs to is not known.
        queries = []
    for number, place in enumerate(replies):
        query = queries[number] if queries else []
        sent = query if any("role" in message for message in query) else _before(history, place)
        body = {"model": model, "messages": [_message(message) for message in sent]}
        yield Step(
            path=PATHS["chat"], body=body, plan=plan_of(history[place]), model=model, label=_label(history[place])
        )


def _before(history: Sequence[Object], place: int) -> list[Object]:
    """What the same agent was told so far: there may be others, that it calls like commands."""
    agent = history[place].get("agent")
    return [said for said in history[:place] if said.get("agent") == agent]


def _is_reply(said: Object) -> bool:
    return said.get("role") == "assistant" and said.get("is_demo") is not True


def _label(said: Object) -> str:
    agent = text(said.get("agent"))
    return "" if agent in ("main", "primary") else agent


def _message(said: Object) -> dict[str, Any]:
    message = {name: said[name] for name in _SENT if said.get(name) is not None}
    ids = items(said.get("tool_call_ids"))
    return {**message, "tool_call_id": ids[0]} if said.get("role") == "tool" and ids else message


def _model(document: Object) -> str:
    """From the configuration, which newer files hold as text."""
    config = document.get("replay_config")
    try:
        config = from_json(config) if isinstance(config, str) else config
    except ValueError:
        config = None
    return text(obj(obj(obj(config).get("agent")).get("model")).get("name"))
