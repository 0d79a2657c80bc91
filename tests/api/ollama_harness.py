"""A server for tests of Ollama's dialect, its model played as in `anthropic_harness`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from ollama import AsyncClient, Client
from tests.api.anthropic_harness import MessagesSite

USER = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@contextmanager
def client_of(site: MessagesSite, **options: Any) -> Iterator[Client]:
    with Client(site.url, trust_env=False, **options) as client:
        yield client


def async_client_of(site: MessagesSite) -> AsyncClient:
    return AsyncClient(site.url, trust_env=False)


def chat(site: MessagesSite, **fields: Any) -> dict[str, Any]:
    """The whole answer to a chat that must succeed."""
    response = site.post("/api/chat", {"messages": USER, "stream": False, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def generate(site: MessagesSite, **fields: Any) -> dict[str, Any]:
    """The whole answer to a prompt that must succeed."""
    response = site.post("/api/generate", {"prompt": "Hi", "stream": False, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def lines_of(response: httpx2.Response) -> list[dict[str, Any]]:
    """Of a stream that has begun; every line must be JSON."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]


def error_of(response: httpx2.Response) -> tuple[int, str]:
    """Status and message of an error, which must be in Ollama's envelope."""
    body = response.json()
    assert list(body) == ["error"]
    return response.status_code, body["error"]
