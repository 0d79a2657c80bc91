"""What the gateway adds to a request: the time to the end of its answer, through it and past it, turn by turn.

::

    python bench/gateway.py                      requests of 50,000 tokens, 200 kB
    python bench/gateway.py --requests 1000 --limit-ms 2

An upstream that answers at once runs in one process, the gateway, as `kvstet gateway` starts it, in another, and the
client in a third. Each round sends the same request to each of them, in changing order, on connections that are kept,
and rests between rounds as agents do. Told is the difference within each round, so that whatever else the machine does
falls on both sides. The exit status is 1 where the median of the observing gateway's is above ``--limit-ms``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from starlette.types import Receive, Scope, Send

from kvstet.api.server import listen, url_of
from kvstet.config import ServerOptions
from kvstet.gateway.building import GatewayOptions, build
from kvstet.gateway.server import run, serve

CHARACTERS_PER_TOKEN = 4
PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages"}
REST_SECONDS = 0.03
NUM_WARM = 10


def body_of(dialect: str, num_tokens: int) -> bytes:
    """A conversation with an agent's tools, of so many tokens."""
    chance = random.Random(0)
    words = ["parse", "the", "buffer", "return", "index", "value", "of", "def", "import", "cache", "line", "token"]
    head = {"model": "claude-sonnet-5", "max_tokens": 100, "stream": True}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Find the bug."}]
    while sum(len(message["content"]) for message in messages) < num_tokens * CHARACTERS_PER_TOKEN:
        text = " ".join(chance.choices(words, k=600))
        messages += [{"role": "assistant", "content": "I read on."}, {"role": "user", "content": text}]
    system = "You are an agent. " * 100
    if dialect == "messages":
        return json.dumps({**head, "system": system, "messages": messages}).encode()
    return json.dumps({**head, "messages": [{"role": "system", "content": system}, *messages]}).encode()


def reply_of(dialect: str) -> bytes:
    """A short stream with its usage."""
    if dialect == "messages":
        usage = {"input_tokens": 500, "cache_read_input_tokens": 49_000, "cache_creation_input_tokens": 500}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": usage}
        events = [
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Found."}},
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ]
        return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()
    usage = {"prompt_tokens": 50_000, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 49_000}}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    delta = {"index": 0, "delta": {"role": "assistant", "content": "Found."}, "finish_reason": None}
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    chunks = [{**head, "choices": [delta]}, {**head, "choices": [end]}, {**head, "choices": [], "usage": usage}]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


async def upstream(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the request, and answers."""
    while (await receive()).get("more_body"):
        pass
    dialect = "messages" if scope["path"] == PATHS["messages"] else "chat"
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": reply_of(dialect)})


def run_upstream(told: Connection) -> None:
    listener = listen(ServerOptions(port=0))
    told.send(url_of(listener))
    config = uvicorn.Config(upstream, log_config=None, lifespan="off", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def run_gateway(told: Connection, url: str, optimises: bool) -> None:
    options = GatewayOptions(upstream=url, provider="anthropic", optimises=optimises)
    server = ServerOptions(port=0)

    async def serving() -> None:
        gateway = build(options, server)
        await serve(gateway, gateway, server, drain_seconds=0.1, on_listening=told.send)

    run(serving())


@contextmanager
def started(target: Any, *arguments: Any) -> Iterator[str]:
    """A process; yields the URL that it tells."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()  # A process that dies ends the wait below.
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def milliseconds(client: httpx2.Client, url: str, content: bytes) -> float:
    start = time.perf_counter()
    client.post(url, content=content).raise_for_status()
    return (time.perf_counter() - start) * 1000


def measured(urls: Sequence[str], path: str, content: bytes, num_rounds: int) -> list[list[float]]:
    """For each of the URLs, milliseconds of every round."""
    chance = random.Random(1)
    rounds: list[list[float]] = []
    with httpx2.Client(trust_env=False, timeout=60) as client:
        for _ in range(num_rounds + NUM_WARM):
            order = list(range(len(urls)))
            chance.shuffle(order)
            times = dict.fromkeys(order, 0.0)
            for place in order:
                times[place] = milliseconds(client, urls[place] + path, content)
                time.sleep(REST_SECONDS)
            rounds.append([times[place] for place in range(len(urls))])
    return [list(column) for column in zip(*rounds[NUM_WARM:], strict=True)]


def show(label: str, times: Sequence[float], direct: Sequence[float]) -> float:
    added = [one - other for one, other in zip(times, direct, strict=True)]
    p50, p99 = statistics.median(added), statistics.quantiles(added, n=100)[98]
    print(f"  {label:<24}{statistics.median(times):>10.2f}{p50:>12.2f}{p99:>12.2f}")
    return p50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=50_000)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--limit-ms", type=float)
    arguments = parser.parse_args()
    medians: list[float] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ["KVSTET_LEDGER"] = str(Path(folder) / "ledger.sqlite")
        direct = stack.enter_context(started(run_upstream))
        observing = stack.enter_context(started(run_gateway, direct, False))
        optimising = stack.enter_context(started(run_gateway, direct, True))
        for dialect, path in PATHS.items():
            content = body_of(dialect, arguments.tokens)
            times = measured([direct, observing, optimising], path, content, arguments.requests)
            print(f"{dialect}, {len(content) / 1000:,.0f} kB, {arguments.requests} requests; milliseconds")
            print(f"  {'':<24}{'median':>10}{'added p50':>12}{'added p99':>12}")
            show("past the gateway", times[0], times[0])
            medians.append(show("through it", times[1], times[0]))
            show("with --optimise", times[2], times[0])
    return int(arguments.limit_ms is not None and max(medians) > arguments.limit_ms)


if __name__ == "__main__":
    sys.exit(main())
