"""``kvstet explain``: why requests cost what they did, of a running server or of a recorded session."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import httpx2
import typer
from rich.console import Console
from rich.markup import escape

from kvstet.api.sessions import edit_as_json
from kvstet.cli.listing import stdout_console
from kvstet.cli.recordings import RecordedRequest, read_recording
from kvstet.edits.history import History
from kvstet.edits.pricing import estimated
from kvstet.edits.verdict import explained
from kvstet.errors import InvalidRequest

DEFAULT_URL = "http://127.0.0.1:8080"
PATH = "/v1/kvstet/sessions"
TIMEOUT_SECONDS = 10.0

ESTIMATED = "No model is asked: tokens are estimated from characters, and a cache that forgets nothing is assumed."

_UNBROKEN = frozenset({"new_conversation", "side_request", "sub_agent", "rewound"})


@dataclass(frozen=True, slots=True)
class Told:
    """One request, as it is printed."""

    head: str
    verdict: str
    edits: Sequence[Mapping[str, Any]]


def explain(
    url: Annotated[str, typer.Option("--url", help="The running server.")] = DEFAULT_URL,
    last: Annotated[int, typer.Option("--last", min=1, max=1000, help="Conversations to show.")] = 5,
    api_key: Annotated[str | None, typer.Option("--api-key", envvar="KVSTET_API_KEY", help="The server's.")] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Explain a recorded session instead, without a server or a model.")
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Also the requests whose prefix nothing broke.")] = False,
) -> None:
    """Say why requests cost what they did: what the client changed, what that cost, and what can be done about it."""
    console = stdout_console()
    if trace is not None:
        console.print(f"[dim]{ESTIMATED}[/dim]")
        show(console, explained_recording(read_recording(trace)), show_all=show_all)
        return
    for conversation in fetched(url, last, api_key):
        console.print(f"[bold]{escape(conversation_title(conversation))}[/bold]")
        show(console, map(told, conversation["requests"]), show_all=show_all)


def fetched(url: str, last: int, api_key: str | None) -> list[dict[str, Any]]:
    """A running server's latest conversations, the oldest first. InvalidRequest: there is no such server."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        answer = httpx2.get(f"{url.rstrip('/')}{PATH}?limit={last}", headers=headers, timeout=TIMEOUT_SECONDS)
        answer.raise_for_status()
        return cast("list[dict[str, Any]]", answer.json()["data"])[::-1]
    except httpx2.HTTPStatusError as error:
        raise InvalidRequest(f"{url} answers with {error.response.status_code}: {error.response.text}") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(f"No kvstet server answers at {url}: {error}") from error


def explained_recording(requests: Sequence[RecordedRequest]) -> Iterator[Told]:
    """Each request of a recording, as a server would explain it."""
    history = History()
    for request in requests:
        place = history.note(request.snapshot)
        if request.reply is not None:
            history.reply(place.branch, request.reply)
        verdict = explained(place, *estimated(place, request.snapshot), None)
        head = f"{request.number:>4} {request.label or 'request'}, {len(request.snapshot.items)} messages"
        yield Told(head, verdict.sentence, [edit_as_json(edit) for edit in verdict.edits])


def conversation_title(conversation: Mapping[str, Any]) -> str:
    """One line about a conversation of the server."""
    requests = conversation["requests"]
    parent = f", of conversation {conversation['parent']}" if conversation.get("parent") else ""
    session = f", session {conversation['session']}" if conversation.get("session") else ""
    count = f"{len(requests)} request" if len(requests) == 1 else f"{len(requests)} requests"
    return f"Conversation {conversation['id']}{parent}{session}: {count} to {requests[-1]['model']}"


def told(request: Mapping[str, Any]) -> Told:
    """A request as the server tells it."""
    at = time.strftime("%X", time.localtime(request["time"]))
    sources = ", ".join(f"{name} {request[name]:,}" for name in ("reused", "loaded", "shifted") if request[name])
    costs = f"computed {request['computed']:,} in {request['compute_seconds']:.1f} s"
    head = f"{at} {request['messages']} messages: {', '.join(part for part in (sources, costs) if part)}"
    return Told(head, request["verdict"], request["edits"])


def show(console: Console, requests: Iterator[Told], *, show_all: bool) -> None:
    """Print them; those that nothing broke are counted only."""
    num_unbroken = 0
    for request in requests:
        if not (show_all or _is_told(request)):
            num_unbroken += 1
            continue
        console.print(f"  [dim]{escape(request.head)}[/dim]", soft_wrap=True)
        console.print(f"    {escape(request.verdict)}", soft_wrap=True)
        for edit, count in _advised(request.edits):
            times = f" ({count} times)" if count > 1 else ""
            console.print(f"    [dim]- {escape(edit)}{times}[/dim]", soft_wrap=True)
    if num_unbroken:
        what = "1 other request" if num_unbroken == 1 else f"{num_unbroken} other requests"
        console.print(f"  [dim]{what}: nothing broke the prefix.[/dim]")


def _is_told(request: Told) -> bool:
    return any(edit["kind"] != "new_conversation" for edit in request.edits)


def _advised(edits: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Advice on what broke the prefix, each once, and how often it is due."""
    advice: dict[str, int] = {}
    for edit in edits:
        if edit["kind"] not in _UNBROKEN:
            advice[edit["advice"]] = advice.get(edit["advice"], 0) + 1
    return list(advice.items())
