"""Ten thousand requests, recorded and generated, reach the upstream as they were sent, and the answers come back so."""

from __future__ import annotations

import asyncio
import gzip
import json
import lzma
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.gateway_harness import Answer, Fields, Gate, Recorded, Recorder, gateway_to, serving

TRACES = Path(__file__).parents[1] / "data" / "traces"
NUM_CONNECTIONS = 16
NUMBER = b"x-number"
NUM_ALL, NUM_FEW = 10_000, 800
PER_CONNECTION = {b"host", b"connection", b"content-length", b"transfer-encoding", b"keep-alive"}

PATHS = (
    b"/v1/chat/completions",
    b"/v1/messages?beta=true",
    b"/v1/messages/count_tokens",
    b"/v1/responses",
    b"/v1/responses/resp_1?include[]=a&b=%5b%5D",
    b"/v1/models",
    b"/v1/embeddings",
    b"/odd//path/%2e%2E/%c3%bc?=&&a",
)
TEXTS = ("plain", "ünï ☃ 🙂", "\u2028\u2029", "\x00\x1f", '"\\/', "a" * 3000, "", "\ud83d", "data: [DONE]\n\n")
SPACES = ("", " ", "\n", "\t \r\n")


@dataclass(frozen=True)
class Sent:
    """A request to be sent, and what the upstream shall answer."""

    method: str
    target: bytes
    fields: Fields
    pieces: tuple[bytes, ...]
    is_chunked: bool
    answer: Answer = field(default_factory=Answer)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)


def recorded_requests() -> list[Sent]:
    """All requests of all recordings, each with its own headers."""
    return [sent for path in sorted(TRACES.glob("*.jsonl.xz")) for sent in _recorded(path)]


def _recorded(path: Path) -> Iterator[Sent]:
    with lzma.open(path, "rt") as file:
        entries = [json.loads(line) for line in file]
    for entry in entries:
        if entry.get("dir") == "request" and "body_raw" in entry:
            fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in entry.get("headers", ())]
            kept = [field for field in fields if field[0].lower() not in PER_CONNECTION]
            yield Sent(entry.get("method", "POST"), entry["path"].encode(), kept, (entry["body_raw"].encode(),), False)


def generated_requests(number: int, seed: int) -> Iterator[Sent]:
    chance = random.Random(seed)
    for _ in range(number):
        body = _random_body(chance)
        method = chance.choice(("POST", "POST", "POST", "PUT", "PATCH", "DELETE", "GET"))
        is_chunked = chance.random() < 0.3
        yield Sent(
            method, chance.choice(PATHS), _random_fields(chance), _cut(chance, body), is_chunked, _answer(chance)
        )


def _random_body(chance: random.Random) -> bytes:
    match chance.randrange(8):
        case 0:
            return b""
        case 1:
            return chance.randbytes(chance.randrange(1, 5000))
        case 2:
            return b'{"model": "m", "messages": [' + chance.randbytes(20) + b"]}"
        case 3:
            return gzip.compress(chance.randbytes(100))
        case _:
            return _odd_json(chance, 4).encode("utf-8", "surrogatepass")


def _odd_json(chance: random.Random, depth: int) -> str:
    """JSON as somebody may write it: spaces anywhere, keys twice, numbers of any form."""
    space = chance.choice(SPACES)
    if depth == 0 or chance.random() < 0.3:
        text = json.dumps(chance.choice(TEXTS), ensure_ascii=chance.random() < 0.5)
        return space + chance.choice((text, "1e400", "-0", "0.1000", "1" * 30, "null", "true")) + space
    children = [_odd_json(chance, depth - 1) for _ in range(chance.randrange(4))]
    if chance.random() < 0.4:
        return f"{space}[{','.join(children)}]{space}"
    keys = ("messages", "model", "model", "cache_control", "ü", "")
    return space + "{" + ",".join(f"{json.dumps(chance.choice(keys))}:{child}" for child in children) + "}" + space


def _random_fields(chance: random.Random) -> Fields:
    known: Sequence[tuple[bytes, bytes]] = (
        (b"Authorization", b"Bearer sk-test"),
        (b"X-Api-Key", b"sk-test"),
        (b"anthropic-beta", b"one,two"),
        (b"Anthropic-Beta", b"three"),
        (b"Content-Type", b"application/json"),
        (b"Accept-Encoding", b"gzip, br, zstd"),
        (b"User-Agent", b"odd/1.0"),
        (b"Cookie", b"a=1; b=2"),
        (b"X-Huge", b"h" * chance.randrange(20_000)),
        (b"X-Latin", "grün".encode("latin-1")),
        (b"X-Empty", b""),
        (b"X-Stainless-Retry-Count", b"0"),
        (b"Accept", b"*/*"),
        (b"x-kvstet-fidelity", b"exact"),
    )
    return chance.sample(known, chance.randrange(len(known)))


def _cut(chance: random.Random, data: bytes) -> tuple[bytes, ...]:
    """In pieces, cut anywhere."""
    places = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(6)))
    return tuple(data[i:j] for i, j in zip([0, *places], [*places, len(data)], strict=True) if i < j)


def _answer(chance: random.Random) -> Answer:
    events = [f"event: e{n}\ndata: {_odd_json(chance, 2)}\n\n".encode("utf-8", "surrogatepass") for n in range(4)]
    body = b"".join(events) if chance.random() < 0.6 else _random_body(chance)
    kind = chance.choice((b"text/event-stream", b"application/json", b"application/octet-stream"))
    fields = [(b"content-type", kind), *((name.lower(), value) for name, value in _random_fields(chance))]
    if chance.random() < 0.5:
        fields.append((b"content-length", b"%d" % len(body)))
    return Answer(chance.choice((200, 200, 200, 201, 400, 429, 500, 529)), fields, _cut(chance, body))


@contextmanager
def between(sent: Sequence[Sent]) -> Iterator[tuple[Recorder, Gate]]:
    recorder = Recorder(plan=lambda request: sent[number_of(request)].answer)
    with serving(recorder) as url, gateway_to(url) as gate:
        yield recorder, gate


def number_of(request: Recorded) -> int:
    return int(dict(request.fields)[NUMBER])


def passed(sent: Sequence[Sent]) -> Callable[[], None]:
    """Send all, some at a time; the check that nothing has changed."""
    with between(sent) as (recorder, gate):
        answers = asyncio.run(_sent_all(gate.url, sent))
    arrived = {number_of(request): request for request in recorder.requests}

    def check() -> None:
        assert len(arrived) == len(recorder.requests) == len(sent)
        for number, request in enumerate(sent):
            assert_same_request(request, arrived[number])
            assert_same_answer(request.answer, answers[number])

    return check


async def _sent_all(url: str, requests: Sequence[Sent]) -> dict[int, tuple[httpx2.Response, bytes]]:
    waiting = iter(enumerate(requests))
    answers: dict[int, tuple[httpx2.Response, bytes]] = {}
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:

        async def work() -> None:
            for number, request in waiting:
                answers[number] = await _send(client, url, number, request)

        await asyncio.gather(*(work() for _ in range(NUM_CONNECTIONS)))
    return answers


async def _send(client: httpx2.AsyncClient, url: str, number: int, sent: Sent) -> tuple[httpx2.Response, bytes]:
    framing = (b"Transfer-Encoding", b"chunked") if sent.is_chunked else (b"Content-Length", b"%d" % len(sent.body))
    request = httpx2.Request(
        sent.method,
        url,
        headers=[(b"Host", b"localhost"), *sent.fields, (NUMBER, b"%d" % number), framing],
        stream=_Pieces(sent.pieces),
        extensions={"target": sent.target},
    )
    answer = await client.send(request, stream=True)
    body = b"".join([piece async for piece in answer.aiter_raw()])
    await answer.aclose()
    return answer, body


class _Pieces(httpx2.AsyncByteStream):
    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece
            await asyncio.sleep(0)


def assert_same_request(sent: Sent, arrived: Recorded) -> None:
    assert arrived.method == sent.method
    assert arrived.target == sent.target
    assert arrived.body == sent.body
    assert _fields(arrived.fields) == _fields(sent.fields)


def assert_same_answer(answer: Answer, got: tuple[httpx2.Response, bytes]) -> None:
    response, body = got
    assert response.status_code == answer.status
    assert body == b"".join(answer.pieces)
    assert _fields(response.headers.raw) == _fields(answer.fields)


def _fields(fields: Any) -> Fields:
    own = PER_CONNECTION | {NUMBER}
    return [(name.lower(), value) for name, value in fields if name.lower() not in own]


def test_recorded_and_generated_requests_pass_unchanged():
    recorded = recorded_requests()
    assert len(recorded) > 300
    passed([*recorded[::3], *generated_requests(NUM_FEW - len(recorded[::3]), seed=1)])()


@pytest.mark.slow
def test_ten_thousand_requests_pass_unchanged():
    recorded = recorded_requests()
    passed([*recorded, *generated_requests(NUM_ALL - len(recorded), seed=2)])()
