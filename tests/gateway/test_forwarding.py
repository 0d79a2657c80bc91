"""Requests and responses pass through as they came."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import pytest
from tests.api.harness import eventually
from tests.gateway.gateway_harness import (
    Answer,
    Fields,
    Gate,
    Recorder,
    Wire,
    gateway_to,
    read_request,
    received,
    replying,
    serving,
    upstream_at,
)

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Recorder, Gate]]:
    recorder = Recorder()
    with serving(recorder) as url, gateway_to(url) as gate:
        yield recorder, gate


@pytest.fixture
def recorder(shared: tuple[Recorder, Gate]) -> Recorder:
    recorder, _ = shared
    recorder.requests.clear()
    recorder.answer, recorder.plan = Answer(), None
    return recorder


@pytest.fixture
def gate(shared: tuple[Recorder, Gate], recorder: Recorder) -> Gate:
    return shared[1]


def without_host(fields: Fields) -> Fields:
    return [field for field in fields if field[0] != b"host"]


def test_what_is_sent_is_what_arrives(recorder: Recorder, gate: Gate):
    head = (
        b"POST /v1/chat/completions?a=%20b&A=+&a= HTTP/1.1\r\nHost: localhost\r\n"
        b"X-Twice: 1\r\nAuthorization: Bearer k\r\n"
        b"x-twice: 2\r\nX-Empty:\r\nContent-Length: 9\r\nanthropic-beta: a,b\r\nConnection: close\r\n\r\n"
    )
    answer = gate.asked(head + b'{"a": 1} ')
    assert answer.startswith(b"HTTP/1.1 200")
    assert recorder.last.method == "POST"
    assert recorder.last.target == b"/v1/chat/completions?a=%20b&A=+&a="
    assert recorder.last.body == b'{"a": 1} '
    assert without_host(recorder.last.fields) == [
        (b"x-twice", b"1"),
        (b"authorization", b"Bearer k"),
        (b"x-twice", b"2"),
        (b"x-empty", b""),
        (b"content-length", b"9"),
        (b"anthropic-beta", b"a,b"),
    ]


def test_the_upstream_gets_its_own_host_and_nothing_of_the_connection(recorder: Recorder, gate: Gate):
    head = (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost:1\r\n"
        b"Connection: close, X-Private\r\nX-Private: 1\r\nTE: trailers\r\n"
        b"Keep-Alive: 1\r\nProxy-Connection: close\r\nX-Kept: 1\r\n\r\n"
    )
    gate.asked(head)
    names = [name for name, _ in recorder.last.fields]
    assert names == [b"host", b"x-kept"]
    assert recorder.last.fields[0][1] in gate.gateway.upstream.bases["chat"].encode()


def test_a_chunked_body_arrives_whole_and_chunked(recorder: Recorder, gate: Gate):
    with gate.http() as client:
        client.post(CHAT, content=iter([b"{", b'"a"', b":", b"1" * 200_000, b"}"]))
    assert recorder.last.body == b'{"a":' + b"1" * 200_000 + b"}"
    assert (b"transfer-encoding", b"chunked") in recorder.last.fields


def test_a_compressed_body_arrives_compressed(recorder: Recorder, gate: Gate):
    body = gzip.compress(b'{"a": 1}')
    gate.post(CHAT, body, headers={"content-encoding": "gzip"})
    assert recorder.last.body == body
    assert (b"content-encoding", b"gzip") in recorder.last.fields


def test_a_body_is_sent_on_while_it_comes():
    """The upstream has seen its beginning before the client has sent its end."""
    began = threading.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.read(1)
        began.set()
        await reader.readuntil(b"end")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with Wire(handle).running() as wire, gateway_to(wire.url) as gate, gate.connect() as connection:
        connection.sendall(b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\nbegin")
        assert began.wait(5)
        connection.sendall(b"end")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(recorder: Recorder, gate: Gate):
    with gate.connect() as connection:
        head = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100")
        connection.sendall(b"{}")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert recorder.last.body == b"{}"
    assert b"expect" not in [name for name, _ in recorder.last.fields]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"])
def test_every_method_passes(recorder: Recorder, gate: Gate, method: str):
    recorder.answer = Answer(fields=[(b"content-length", b"2"), (b"x-a", b"b")])
    with gate.http() as client:
        answer = client.request(method, "/any/path%2Fhere/?q")
    assert recorder.last.method == method
    assert recorder.last.target == b"/any/path%2Fhere/?q"
    assert answer.headers["content-length"] == "2"
    assert answer.content == (b"" if method == "HEAD" else b"{}")


def test_what_is_answered_is_what_comes_back(recorder: Recorder, gate: Gate):
    fields = [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"request-id", b"req_1"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
        (b"server", b"theirs"),
    ]
    recorder.answer = Answer(201, fields, (b"data: 1\n\n", b"data: 2", b"\n\n"))
    with gate.http() as client:
        answer = client.post(MESSAGES, content=b"{}")
    assert answer.status_code == 201
    assert answer.content == b"data: 1\n\ndata: 2\n\n"
    assert [field for field in answer.headers.raw if field[0] != b"transfer-encoding"] == fields


def test_a_compressed_response_comes_back_compressed(recorder: Recorder, gate: Gate):
    body = gzip.compress(b"x" * 1000)
    recorder.answer = Answer(
        fields=[(b"content-encoding", b"gzip"), (b"content-length", b"%d" % len(body))], pieces=(body,)
    )
    with gate.http() as client, client.stream("POST", CHAT, content=b"{}") as answer:
        assert b"".join(answer.iter_raw()) == body


@pytest.mark.parametrize("status", [204, 304, 400, 401, 404, 413, 429, 500, 503, 529])
def test_errors_of_the_upstream_pass_as_they_are(recorder: Recorder, gate: Gate, status: int):
    body = b"" if status in (204, 304) else b'{"type":"error","x":"\xff"}'
    recorder.answer = Answer(status, [(b"retry-after", b"7"), (b"x-should-retry", b"true")], (body,))
    answer = gate.post(MESSAGES, b"{}")
    assert (answer.status_code, answer.content) == (status, body)
    assert answer.headers["retry-after"] == "7"
    assert answer.headers["x-should-retry"] == "true"


def test_a_redirection_is_the_clients_to_follow(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(307, [(b"location", b"http://elsewhere.example/v1")], ())
    answer = gate.post(CHAT, b"{}", headers={"authorization": "Bearer secret"})
    assert answer.status_code == 307
    assert answer.headers["location"] == "http://elsewhere.example/v1"
    assert len(recorder.requests) == 1


def test_cookies_are_told_to_no_other_client(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(fields=[(b"set-cookie", b"session=1; Path=/")])
    gate.post(CHAT, b"{}")
    gate.post(CHAT, b"{}")
    assert b"cookie" not in [name for name, _ in recorder.last.fields]


def test_a_websocket_is_refused_so_that_clients_fall_back(recorder: Recorder, gate: Gate):
    head = b"GET /v1/responses HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with gate.connect() as connection:
        connection.sendall(head)
        answer = b""
        while not answer.endswith(b"}}"):
            answer += connection.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 426")
    assert b"websocket_not_supported" in answer
    assert recorder.requests == []


def test_another_upgrade_is_not_granted_and_the_request_passes(recorder: Recorder, gate: Gate):
    """Java's HTTP client asks for HTTP/2 with every request, and goes on with HTTP/1.1."""
    head = (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n"
    )
    with gate.connect() as connection:
        connection.sendall(head)
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
    assert [name for name, _ in recorder.last.fields] == [b"host"]


def test_what_is_broken_off_at_the_end_is_noted(caplog: pytest.LogCaptureFixture):
    """Its tokens are billed all the same."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()

    body = b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}'
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
    with Wire(handle).running() as wire, ExitStack() as stack, gateway_to(wire.url) as gate:
        for _ in range(4):
            connection = stack.enter_context(gate.connect())
            connection.sendall(head + body)
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
    assert [row.content["is_complete"] for row in gate.observer.requests._rows] == [False] * 4
    assert "RuntimeError" not in caplog.text


def test_pieces_come_back_one_by_one(recorder: Recorder, gate: Gate):
    recorder.answer = Answer(fields=[], pieces=(b"a", b"b", b"c"), pause_seconds=0.15)
    times: list[float] = []
    with gate.http() as client, client.stream("POST", CHAT, content=b"{}") as answer:
        for piece in answer.iter_raw():
            times.append(time.monotonic())
            assert len(piece) == 1
    assert [late - early > 0.1 for early, late in itertools.pairwise(times)] == [True, True]


def test_fifty_streams_pass_at_once(recorder: Recorder, gate: Gate):
    recorder.plan = lambda request: Answer(
        pieces=tuple(b"%b %d\n" % (request.body, n) for n in range(20)), pause_seconds=0.02
    )

    async def stream(client: httpx2.AsyncClient, number: int) -> bytes:
        answer = await client.post(f"{gate.url}{CHAT}", content=b"%d" % number)
        return answer.content

    async def all_at_once() -> list[bytes]:
        async with httpx2.AsyncClient(trust_env=False, timeout=30, limits=httpx2.Limits()) as client:
            return await asyncio.gather(*(stream(client, number) for number in range(50)))

    began = time.monotonic()
    answers = asyncio.run(all_at_once())
    assert answers == [b"".join(b"%d %d\n" % (number, n) for n in range(20)) for number in range(50)]
    assert time.monotonic() - began < 10 < 50 * 20 * 0.02


def test_an_upstream_that_is_not_there_is_a_502_in_the_clients_words():
    with gateway_to("http://127.0.0.1:9") as gate:
        chat, messages = gate.post(CHAT, b"{}"), gate.post("/anthropic/v1/messages?beta=true", b"{}")
    assert chat.status_code == messages.status_code == 502
    assert chat.json()["error"]["code"] == "upstream_unreachable"
    assert messages.json()["type"] == "error"
    assert messages.json()["error"]["type"] == "api_error"
    assert chat.headers["retry-after"]


def test_an_upstream_that_says_nothing_is_a_504_in_the_clients_words():
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    with Wire(handle).running() as wire:
        silent = upstream_at(wire.url, read_seconds=0.2)
        with gateway_to(silent) as gate:
            chat, messages = gate.post(CHAT, b"{}"), gate.post(MESSAGES, b"{}")
    assert chat.status_code == messages.status_code == 504
    assert chat.json()["error"]["code"] == "upstream_timeout"
    assert messages.json()["error"]["type"] == "timeout_error"


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"\x00\x01 not HTTP\r\n\r\n"])
def test_an_upstream_that_gives_no_answer_is_a_502(data: bytes):
    with Wire(replying(data)).running() as wire, gateway_to(wire.url) as gate:
        assert gate.post(CHAT, b"{}").status_code == 502


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
    ],
)
def test_a_response_that_breaks_off_breaks_off_for_the_client_too(head: bytes):
    body = b"data: {}\n\n"
    piece = b"%x\r\n%b\r\n" % (len(body), body) if b"chunked" in head else body
    with Wire(replying(head + piece)).running() as wire, gateway_to(wire.url) as gate:
        seen: list[bytes] = []
        with gate.http() as client, client.stream("POST", CHAT, content=b"{}") as answer:
            assert answer.status_code == 200
            with pytest.raises(httpx2.RemoteProtocolError):
                seen.extend(answer.iter_raw())
        assert b"".join(seen) == body


def test_a_response_that_falls_silent_breaks_off():
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await reader.read()

    with Wire(handle).running() as wire, gateway_to(upstream_at(wire.url, read_seconds=0.2)) as gate:
        data = gate.asked(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    assert data.endswith(b"1\r\na\r\n")


def test_malformed_events_pass_as_they_are(recorder: Recorder, gate: Gate):
    pieces = (b"data: {not json\n", b"\xff\xfe\n\nevent:", b"\r\r\n: \n\n", b"data: [DONE]")
    recorder.answer = Answer(fields=[(b"content-type", b"text/event-stream")], pieces=pieces)
    for path in (CHAT, MESSAGES, "/v1/responses"):
        assert gate.post(path, b"{}").content == b"".join(pieces)


def seconds_to_cancel(response: bytes, path: str) -> float:
    """From when a client hangs up, to whom this much of a response was sent, until the upstream sees it."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(response)
        asked.set()
        await wire.until_closed(reader)

    asked = threading.Event()
    wire = Wire(handle)
    with wire.running(), gateway_to(wire.url) as gate:
        with gate.connect() as connection:
            connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            assert asked.wait(5)
            if response:
                assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            assert wire.num_closed == 0
            hung_up_at = time.monotonic()
        assert eventually(lambda: wire.num_closed > 0, 5)
        return time.monotonic() - hung_up_at


@pytest.mark.parametrize("path", [CHAT, "/v1/files"])
@pytest.mark.parametrize("response", [b"", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"])
def test_hanging_up_cancels_the_upstream(response: bytes, path: str):
    """Before the first byte and within a stream, within 100 ms; a busy machine has three tries."""
    assert any(seconds_to_cancel(response, path) < 0.1 for _ in range(3))


def test_hanging_up_within_the_request_cancels_the_upstream():
    wire = Wire(lambda reader, _: wire.until_closed(reader))
    with wire.running(), gateway_to(wire.url) as gate:
        with gate.connect() as connection:
            connection.sendall(b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{}")
            assert eventually(lambda: wire.num_connections == 1)
        assert eventually(lambda: wire.num_closed > 0, 5)


def test_a_client_that_reads_slowly_holds_the_upstream_back():
    """The gateway takes in little that it cannot pass on."""
    total, sent = 64 * 1024 * 1024, 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    with Wire(handle).running() as wire, gateway_to(wire.url) as gate, gate.connect() as connection:
        connection.sendall(b"GET /v1/files/1/content HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        connection.recv(1000)
        before = -1
        while before != sent:  # Until it stands still.
            before = sent
            time.sleep(0.3)
        assert sent < total / 2
        assert len(received(connection)) > total - 2000


def test_connections_are_kept_for_the_next_request():
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            try:
                await read_request(reader)
            except asyncio.IncompleteReadError:
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with Wire(handle).running() as wire, gateway_to(wire.url) as gate:
        for _ in range(5):
            assert gate.post(CHAT, b"{}").status_code == 200
        assert wire.num_connections == 1


@pytest.mark.parametrize("path", ["/", "/health", "/v1/health", "/metrics"])
def test_the_gateways_own_paths_reach_no_upstream(recorder: Recorder, gate: Gate, path: str):
    with gate.http() as client:
        assert client.get(path).status_code == 200
    assert recorder.requests == []


def test_a_foreign_host_is_refused(recorder: Recorder, gate: Gate):
    with gate.http() as client:
        assert client.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
    assert recorder.requests == []
