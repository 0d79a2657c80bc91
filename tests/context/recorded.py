"""Requests of recorded sessions, and strategies that damage them."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import strategies as st
from tests.api.traces import FOLDER, steps

from kvstet.context.arranging.lens import DialectName

Body = dict[str, Any]

NAMES = sorted(path.name.removesuffix(".jsonl.xz") for path in FOLDER.glob("*.xz") if "-requests" not in path.name)

_DIALECTS: dict[str, DialectName] = {
    "/v1/chat/completions": "chat",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
}


@dataclass(frozen=True)
class Recorded:
    """One request."""

    number: int
    kind: str
    """What the client asked for, as the recording names it: ``main t1 s2``, ``title``, ``compaction``."""
    dialect: DialectName
    text: str
    """The body's JSON."""

    @property
    def body(self) -> Body:
        return json.loads(self.text)


@cache
def requests_of(name: str) -> tuple[Recorded, ...]:
    """Those of a session that make a prompt."""
    found = ((_DIALECTS.get(step.path.partition("?")[0]), step) for step in steps(name))
    return tuple(Recorded(step.number, step.kind, dialect, step.body.decode()) for dialect, step in found if dialect)


def written(body: object) -> str:
    """Its JSON, byte for byte as it would be sent."""
    return json.dumps(body)


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.text(max_size=4),
    st.just([]),
    st.just({}),
    st.just([[{}]]),
    st.just({"type": ["text"], "role": [], "text": {}, "content": 3}),
    st.just({"type": "text", "text": "\ud800"}),
    st.just([{"type": "tool_result", "tool_use_id": None, "content": [None, 1.5]}]),
    st.just([{"function": {"name": 1, "arguments": "{"}}, "x"]),
)


@cache
def _few() -> tuple[Recorded, ...]:
    """An early request of each session: damaging long ones tells no more, and takes longer."""
    return tuple(next(each for each in requests_of(name)[1:]) for name in NAMES)


@st.composite
def damaged(draw: st.DrawFn) -> tuple[DialectName, Body]:
    """A recorded body with junk in some places, things gone, or twice."""
    recorded = draw(st.sampled_from(_few()))
    body = copy.deepcopy(recorded.body)
    for _ in range(draw(st.integers(1, 4))):
        _damage(draw, body)
    return draw(st.sampled_from([recorded.dialect] * 4 + ["chat", "messages", "responses"])), body


def _damage(draw: st.DrawFn, body: Body) -> None:
    value: Any = body
    while True:
        if not isinstance(value, dict | list) or not value:
            return
        place = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        if isinstance(value[place], dict | list) and value[place] and draw(st.integers(0, 4)):
            value = value[place]
            continue
        match draw(st.sampled_from(["junk", "junk", "gone", "twice"])):
            case "junk":
                value[place] = copy.deepcopy(draw(JUNK))
            case "gone":
                del value[place]
            case _ if isinstance(value, list):
                value.insert(place, copy.deepcopy(value[place]))
            case _:
                value[draw(st.sampled_from(["type", "content", "role", "text", "x"]))] = copy.deepcopy(value[place])
        return
