"""A server for tests of the Responses API. Replies are marked up, as in `tests.api.anthropic_harness`, so that a parser
can play them."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from tests.api import harness
from tests.api.anthropic_harness import PlayedRenderer
from tests.api.harness import Site, running

from kvstet.engine.fake_client import ScriptedEngine

LS = {"type": "function", "name": "ls", "description": "Lists files.", "parameters": {"type": "object"}}
PATCH = {"type": "custom", "name": "apply_patch", "description": "Edits files."}
AGENTS = {"type": "namespace", "name": "agents", "description": "Helpers.", "tools": [{**LS, "name": "spawn"}]}


@dataclass(frozen=True)
class ResponsesSite(Site):
    """A running server, asked for responses."""

    def ask(self, input: Any = "Hi", **fields: Any) -> dict[str, Any]:
        """The JSON answer to a request that must succeed."""
        response = self.post("/v1/responses", {"input": input, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def refused(self, input: Any = "Hi", **fields: Any) -> dict[str, Any]:
        """The error of a request that must be refused."""
        response = self.post("/v1/responses", {"input": input, **fields})
        assert response.status_code == 400, response.text
        return response.json()["error"]

    def events(self, input: Any = "Hi", **fields: Any) -> list[dict[str, Any]]:
        """The events of a streamed request, each of which must bear its own name and number."""
        response = self.post("/v1/responses", {"input": input, "stream": True, **fields})
        assert response.status_code == 200, response.text
        return events_in(response.text)


def events_in(body: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for block in body.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def types_of(events: Sequence[Any]) -> list[str]:
    """What kinds of events came, without the prefix that nearly all have; repeated ones once."""
    names = [(event["type"] if isinstance(event, dict) else event.type).removeprefix("response.") for event in events]
    return [name for place, name in enumerate(names) if place == 0 or names[place - 1] != name]


class Played(PlayedRenderer):
    """Its parser reads no control tokens, and so is shown none."""

    @property
    def shown_tokens(self) -> Set[int]:
        return frozenset()


@contextmanager
def running_responses(engine: ScriptedEngine, **options: Any) -> Generator[ResponsesSite, None, None]:
    renderer = Played()
    with patch.object(harness, "Renderer", lambda *_: renderer), running(engine, **options) as site:
        yield ResponsesSite(site.engine, site.url)
