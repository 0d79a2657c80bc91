"""A small recorded session, a kvstet server whose cache is real and whose model is not, and a scripted peer."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.api.harness import Site, running
from tests.api.played_engine import PlayedEngine

from kvstet.chat.builtin import builtin_template
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.replay.playing import Player
from kvstet.replay.results import Run
from kvstet.replay.server import client_of, found
from kvstet.replay.session import Pace, Session, session_of
from kvstet.traces.format import Call, Plan, Request, Response
from kvstet.traces.reading import Exchange

TOKENIZER = ByteTokenizer(eos="<|im_end|>")
END = TOKENIZER.special_tokens["<|im_end|>"]
PARAMETERS = {"type": "object", "properties": {"cmd": {"type": "string"}}}
BASH = {"type": "function", "function": {"name": "bash", "description": "Runs.", "parameters": PARAMETERS}}
SYSTEM = {"role": "system", "content": "You are an agent. " * 20}
TASK = {"role": "user", "content": "List the files of this folder, please."}
PLAN = Plan(reasoning="Hm, ls.", text="Let me see.", calls=[Call(name="bash", args_raw='{"cmd": "ls -la"}', id="c1")])
AT_ONCE = Pace(0.0)
DONE = Plan(text="There is one: a.py.")


def assistant(plan: Plan) -> dict[str, Any]:
    calls = [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.args_raw.replace('": ', '":')},
        }
        for call in plan.calls
    ]
    message: dict[str, Any] = {"role": "assistant", "content": plan.text}
    if plan.reasoning:
        message["reasoning_content"] = plan.reasoning
    return message | ({"tool_calls": calls} if calls else {})


RESULT = {"role": "tool", "tool_call_id": "c1", "content": "a.py\n" * 10}
SECOND = [SYSTEM, TASK, assistant(PLAN), RESULT]
THIRD = [*SECOND, assistant(DONE), {"role": "user", "content": "Thanks. Delete it."}]


def exchange(
    number: int,
    body: Any,
    plan: Plan | None = None,
    *,
    path: str = "/v1/chat/completions",
    sent: float = 0.0,
    over: float = 0.0,
    tokens: Sequence[int] = (),
    model: str = "",
    headers: Sequence[tuple[str, str]] = (),
) -> Exchange:
    raw = body if isinstance(body, str) else json.dumps(body)
    request = Request(seq=number, t=sent, path=path, headers=list(headers), body_raw=raw)
    response = Response(seq=number, t=over, status=200, plan=plan, tokens=list(tokens) or None, model=model)
    return Exchange(request, response)


def chat(messages: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"model": "recorded", "messages": list(messages), "tools": [BASH], "max_tokens": 100, **fields}


def recorded() -> Session:
    """Three requests, each of which goes on from the reply to the one before."""
    return session_of(
        [
            exchange(1, chat([SYSTEM, TASK]), PLAN, sent=1.0, over=3.0),
            exchange(2, chat(SECOND), DONE, sent=3.5, over=4.0),
            exchange(3, chat(THIRD), Plan(text="Done."), sent=14.0, over=15.0),
        ]
    )


def replayed(url: str, session: Session, pace: Pace = AT_ONCE, **options: Any) -> Run:
    run = Run(server="it")
    with client_of(url) as client:
        Player(client, found(client), lambda _: None, **options).play(session, pace, run)
    return run


def played_engine(**options: Any) -> PlayedEngine:
    return PlayedEngine(**{"context_length": 1 << 16, "vocab_size": TOKENIZER.num_tokens, "end": END, **options})


@contextmanager
def kvstet_site(engine: PlayedEngine | None = None, **options: Any) -> Generator[Site, None, None]:
    """As good as fresh."""
    renderer = Renderer(builtin_template("chatml-tools"), TOKENIZER, ledger=Ledger())
    with running(engine or played_engine(), renderer, TOKENIZER, **options) as site:
        yield site


@dataclass
class Peer:
    """Answers as llama-server does: of a prompt, what it shares with the last one was cached."""

    build_info: str | None = "b1234-abc"
    """None: there is no /props."""
    models: Sequence[str] = ("peer",)
    refusals: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """Number of the request, from 0, and what is answered to it."""
    paths: frozenset[str] = frozenset({"/v1/chat/completions"})
    tells_usage: bool = True
    dies_at: int | None = None
    url: str = ""
    asked: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    _last: list[int] = field(default_factory=list)

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/props" and self.build_info is not None:
            return 200, {"build_info": self.build_info}
        if path == "/v1/models":
            return 200, {"data": [{"id": name} for name in self.models]}
        return 404, {"error": {"message": "no"}}

    def prompt(self, body: dict[str, Any]) -> str:
        return "".join(
            f"<|im_start|>{message['role']}\n{json.dumps(message)}<|im_end|>" for message in body["messages"]
        )

    def tokens(self, text: str) -> list[int]:
        return TOKENIZER.tokenize(text, add_special=False, parse_special=True).tolist()

    def post(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any]:
        if path == "/apply-template":
            return 200, {"prompt": self.prompt(body)}
        if path == "/tokenize":
            return 200, {"tokens": self.tokens(body["content"])}
        if path not in self.paths:
            return 404, {"error": {"message": "no such path"}}
        if not body:
            return 400, {"error": {"message": "messages is required"}}
        number = len(self.asked)
        self.asked.append((path, body, headers))
        if number == self.dies_at:
            return 0, None
        return self.refusals.get(number) or (200, self._events(body))

    def _events(self, body: dict[str, Any]) -> bytes:
        tokens = self.tokens(self.prompt(body)) if "messages" in body else []
        pairs = zip(tokens, self._last, strict=False)
        num_cached = next(
            (place for place, (one, two) in enumerate(pairs) if one != two), min(len(tokens), len(self._last))
        )
        num_cached, self._last = min(num_cached, max(0, len(tokens) - 1)), tokens
        chunks: list[dict[str, Any]] = [
            {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "x"}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]},
        ]
        if self.tells_usage:
            timings = {"cache_n": num_cached, "prompt_n": len(tokens) - num_cached}
            usage = {"prompt_tokens": len(tokens), "completion_tokens": 1, "total_tokens": len(tokens) + 1}
            chunks.append({"choices": [], "usage": usage} | ({"timings": timings} if self.build_info else {}))
        return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


@contextmanager
def peer_site(peer: Peer) -> Generator[Peer, None, None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*peer.get(self.path))

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["content-length"]))
            self._answer(*peer.post(self.path, json.loads(data), {k.lower(): v for k, v in self.headers.items()}))

        def _answer(self, status: int, content: Any) -> None:
            if status == 0:
                self.connection.close()
                return
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "text/event-stream" if isinstance(content, bytes) else "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        peer.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield peer
        finally:
            server.shutdown()
            thread.join()
