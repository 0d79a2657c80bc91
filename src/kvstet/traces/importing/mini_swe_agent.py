"""Trajectories of mini-swe-agent, ``*.traj.json``: the messages themselves, and with each reply the API's own answer.

The tool's schema is not in the file. Observed in files of 2.4.6, format ``mini-swe-agent-1.1``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvstet.dialects.values import Object, number, obj, objects, text
from kvstet.traces.importing.chat import plan_of
from kvstet.traces.importing.files import SessionFile
from kvstet.traces.importing.steps import Session, Step
from kvstet.traces.reading import PATHS

NAME = "mini-swe-agent"

_OURS = frozenset({"extra", "timestamp"})
_EXIT = "exit"
"""Role of what the agent tells itself at the end."""


def recognises(file: SessionFile) -> bool:
    return any(
        text(line.get("trajectory_format")).startswith(NAME) or "mini_version" in obj(line.get("info"))
        for line in file.sample[:1]
    )


def read(file: SessionFile) -> Session:
    """The whole file: it is one document."""
    document = file.document
    info = obj(document.get("info"))
    return Session(f"{NAME} {text(info.get('mini_version'))}".strip(), _steps(document))


def _steps(document: Object) -> Iterator[Step]:
    sent: list[dict[str, Any]] = []
    model = text(obj(obj(obj(document.get("info")).get("config")).get("model")).get("model_name"))
    asked_at: float | None = None
    for message in objects(document.get("messages")):
        extra = obj(message.get("extra"))
        answer = obj(extra.get("response"))
        if answer or message.get("role") == "assistant":
            yield _step(list(sent), message, answer, text(answer.get("model")) or model, asked_at)
        if message.get("role") != _EXIT:
            sent.append({name: value for name, value in message.items() if name not in _OURS})
        asked_at = number(extra.get("timestamp")) or asked_at


def _step(sent: list[dict[str, Any]], message: Object, answer: Object, model: str, asked_at: float | None) -> Step:
    """A reply that could not be understood is not among the messages, and stands with the complaint about it."""
    choices = objects(answer.get("choices"))
    said = message if message.get("role") == "assistant" else obj(choices[0].get("message") if choices else None)
    return Step(
        path=PATHS["chat"],
        body={"model": model, "messages": sent},
        plan=plan_of(said),
        began=asked_at or number(answer.get("created")),
        ended=number(obj(message.get("extra")).get("timestamp")),
        model=model,
        usage=obj(answer.get("usage")) or None,
    )
