"""Named keys and their limits; and that no log tells what was asked."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.api.harness import Held, Site, asked, eventually, reply, running, tokens_of

from kvstet.api.access import Access, Account, BadAccess, LimitReached, gather_keys, read_key_file
from kvstet.config import ApiKey
from kvstet.engine.fake_client import Hang, Refuse, Say, ScriptedEngine
from kvstet.errors import EngineCrashed, LlamaError

USER = [{"role": "user", "content": "Hi"}]
CHAT = "/v1/chat/completions"


# Keys


def test_a_key_shows_its_name_and_nothing_else():
    key = ApiKey("ali", "sesame")
    for value in (key, Account(key), Access([key])):
        assert "ali" in repr(value)
        assert "sesame" not in repr(value)


def test_a_known_key_leads_to_its_account():
    access = Access([ApiKey("ali", "sesame"), ApiKey("baba", "schlüssel")])
    account = access.account_of([b"wrong", "schlüssel".encode()])
    assert account is not None
    assert account.name == "baba"
    for sent in ([], [b""], [b"sesam"], [b"sesame "], [b"ali"]):
        assert access.account_of(sent) is None


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "keys.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_file_names_keys_and_limits(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    text = """
        [keys.ali]
        key = "sesame"
        max_concurrent = 2
        requests_per_minute = 60

        [keys."Baba's laptop"]
        key = "schlüssel"
    """
    assert read_key_file(key_file(tmp_path, text)) == (
        ApiKey("ali", "sesame", max_concurrent=2, requests_per_minute=60),
        ApiKey("Baba's laptop", "schlüssel"),
    )
    assert caplog.records == []


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_file_that_others_can_read_is_warned_of(
    mode: int, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    read_key_file(key_file(tmp_path, '[keys.ali]\nkey = "sesame"', mode))
    assert ["can be read by others" in record.getMessage() for record in caplog.records] == [True] * warns


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no key"),
        ("[keys]", "has no key"),
        ("sesame\nschluessel", "not valid TOML"),
        ('key = "sesame"', "something else than tables of keys"),
        ('keys = "sesame"', "something else than tables of keys"),
        ('[keys]\nali = "sesame"', "[keys.ali]: Expected `object`, got `str`"),
        ("[keys.ali]", "[keys.ali]: Object missing required field `key`"),
        ("[keys.ali]\nkey = 5", "[keys.ali]: Expected `str`, got `int` - at `$.key`"),
        ('[keys.ali]\nkey = ""', "[keys.ali]: A key is empty"),
        ('[keys.ali]\nkey = "sesame\\n"', "[keys.ali]: A key begins or ends with a blank"),
        ('[keys.ali]\nkey = "sesame"\nmax_concurrent = 0', "[keys.ali]: Expected `int` >= 1 - at `$.max_concurrent`"),
        ('[keys.ali]\nkey = "sesame"\nmax_concurrent = true', "[keys.ali]: Expected `int | null`, got `bool`"),
        ('[keys.ali]\nkey = "sesame"\nmax_concurent = 2', "[keys.ali]: Object contains unknown field `max_concurent`"),
        ('[keys.ali]\nkey = "sesame"\n[keys.baba]\nkey = "sesame"', "gives 'ali' and 'baba' the same key"),
        ('[keys." "]\nkey = "sesame"', "name cannot be printed"),
    ],
)
def test_a_bad_file_is_one_clear_sentence(text: str, words: str, tmp_path: Path):
    path = key_file(tmp_path, text)
    with pytest.raises(BadAccess) as caught:
        read_key_file(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "sesame" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    with pytest.raises(BadAccess, match=r"none\.toml cannot be read: No such file"):
        read_key_file(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadAccess, match="not in UTF-8"):
        read_key_file(tmp_path / "latin.toml")


def test_nameless_keys_are_numbered_and_those_of_the_file_keep_their_limits(tmp_path: Path):
    path = key_file(tmp_path, '[keys.ali]\nkey = "sesame"\nmax_concurrent = 2')
    assert gather_keys(["one", "sesame", "two", "one"], path) == (
        ApiKey("ali", "sesame", max_concurrent=2),
        ApiKey("key-1", "one"),
        ApiKey("key-2", "two"),
    )
    assert gather_keys([], None) == ()


def test_a_name_of_a_nameless_key_cannot_be_given_to_another(tmp_path: Path):
    path = key_file(tmp_path, '[keys.key-1]\nkey = "sesame"')
    with pytest.raises(BadAccess, match=r"call key-1 in .* something else"):
        gather_keys(["one"], path)


@pytest.mark.parametrize("key", ["", " ", "sesame ", "ses\name"])
def test_a_key_that_nobody_can_send_is_refused(key: str):
    """An empty one above all: whoever sends an empty header has it."""
    with pytest.raises(BadAccess):
        gather_keys([key], None)


# Limits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def admitted(account: Account) -> bool:
    """Whether a request that ends at once is let in."""
    try:
        with account.admit():
            return True
    except LimitReached:
        return False


def test_a_rate_holds_for_any_minute():
    clock = Clock()
    account = Account(ApiKey("ali", "sesame", requests_per_minute=3), clock)
    for now, answer in [(0, True), (50, True), (55, True), (59.9, False), (60, True), (61, False), (110, True)]:
        clock.now = 1000.0 + now
        assert admitted(account) is answer, now


def test_a_refusal_says_when_to_try_again_and_counts_for_nothing():
    clock = Clock()
    account = Account(ApiKey("ali", "sesame", requests_per_minute=1), clock)
    assert admitted(account)
    for now, wait_seconds in [(10, 50), (30, 30), (59, 1)]:
        clock.now = 1000.0 + now
        with pytest.raises(LimitReached, match="The key 'ali' may send 1 requests a minute") as caught:
            account.admit()
        assert caught.value.retry_after_seconds == pytest.approx(wait_seconds)
    clock.now = 1060.0
    assert admitted(account)


def test_a_request_counts_until_it_is_over():
    account = Account(ApiKey("ali", "sesame", max_concurrent=2))
    with account.admit(), account.admit():
        assert not admitted(account)
    with contextlib.suppress(RuntimeError), account.admit():
        raise RuntimeError
    assert account.num_running == 0
    assert admitted(account)


def test_what_is_refused_for_concurrency_takes_no_turn():
    account = Account(ApiKey("ali", "sesame", max_concurrent=1, requests_per_minute=2))
    with account.admit():
        assert not any(admitted(account) for _ in range(5))
    assert admitted(account)
    assert not admitted(account)


@pytest.fixture
def limited_site() -> Iterator[Site]:
    """A server on which Ali has one request at a time, and Baba three a minute."""
    keys = (ApiKey("ali", "sesame", max_concurrent=1), ApiKey("baba", "schluessel", requests_per_minute=3))
    with running(ScriptedEngine(reply("Hello.")), api_keys=keys) as site:
        yield site


def ask(site: Site, key: str = "sesame", path: str = CHAT, **fields: Any) -> httpx2.Response:
    with site.http(headers={"authorization": f"Bearer {key}"}) as client:
        return client.post(path, json={"messages": USER, **fields})


@contextlib.contextmanager
def ali_asked(site: Site, **fields: object) -> Iterator[socket.socket]:
    """A connection on which Ali sent a chat request, which has reached the engine."""
    with asked(site, "X-Api-Key: sesame", **fields) as connection:
        yield connection


def is_let_in(site: Site) -> Callable[[], bool]:
    return lambda: ask(site).status_code == 200


def test_a_key_beyond_its_rate_gets_a_429_with_the_time_to_wait(limited_site: Site):
    for _ in range(3):
        assert ask(limited_site, "schluessel").status_code == 200
    response = ask(limited_site, "schluessel")
    assert response.status_code == 429
    assert 30 <= int(response.headers["retry-after"]) <= 60
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "'baba'" in error["message"]
    assert "schluessel" not in response.text
    assert ask(limited_site).status_code == 200, "another key's rate is its own"


def test_what_makes_no_work_is_not_limited(limited_site: Site):
    with limited_site.http(headers={"x-api-key": "schluessel"}) as client:
        assert {client.get("/v1/models").status_code for _ in range(10)} == {200}
    limited_site.engine.script = Hang()
    with ali_asked(limited_site):
        assert limited_site.get("/v1/models", **{"x-api-key": "sesame"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/nothing"])
def test_every_post_is_limited(limited_site: Site, path: str):
    limited_site.engine.script = Hang()
    with ali_asked(limited_site):
        assert ask(limited_site, path=path).status_code == 429


def test_a_stream_counts_until_its_end(limited_site: Site):
    held = Held(reply("x" * 20), num_events=3)
    limited_site.engine.scripts.append(held)
    with (
        limited_site.http(headers={"x-api-key": "sesame"}) as client,
        client.stream("POST", CHAT, json={"messages": USER, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert next(lines)
        refused = ask(limited_site)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        held.go.set()
        assert "data: [DONE]" in list(lines)
    assert eventually(is_let_in(limited_site))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [Hang(), Say(tokens_of("x" * 10_000), token_seconds=0.005)], ids=["prompt", "reply"])
def test_a_client_that_hangs_up_frees_its_place(limited_site: Site, stream: bool, script: Any):
    limited_site.engine.scripts.append(script)
    with ali_asked(limited_site, stream=stream):
        assert ask(limited_site).status_code == 429
    assert eventually(is_let_in(limited_site))


def test_a_client_that_hangs_up_within_its_body_frees_its_place(limited_site: Site):
    with limited_site.connect() as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: sesame\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
        assert eventually(lambda: ask(limited_site).status_code == 429)
    assert eventually(is_let_in(limited_site))


def test_failures_free_their_places(limited_site: Site):
    crash = Say(tokens_of("Hel"), error=EngineCrashed("Died."), token_seconds=0.001)
    limited_site.engine.scripts.extend([Refuse(RuntimeError("a bug")), crash, crash, Refuse(LlamaError("No."))])
    for fields in ({}, {"stream": True}, {}, {"stream": True}, {"messages": []}, {"temperature": "hot"}):
        assert ask(limited_site, **fields).status_code != 429
        assert ask(limited_site, path="/nothing").status_code == 404
    assert ask(limited_site).status_code == 200


def test_a_refused_body_may_be_long(limited_site: Site):
    """The answer must not be lost with the connection while the body is still on its way."""
    limited_site.engine.scripts.append(Hang())
    with ali_asked(limited_site):
        assert ask(limited_site, user="x" * 5_000_000).status_code == 429


def test_the_sdk_waits_and_tries_again(limited_site: Site):
    held = Held(reply("x" * 20))
    limited_site.engine.scripts.append(held)
    started_at = time.monotonic()
    with (
        ali_asked(limited_site, stream=True),
        openai.OpenAI(base_url=f"{limited_site.url}/v1", api_key="sesame", max_retries=3) as client,
        ThreadPoolExecutor() as pool,
    ):
        asking = pool.submit(client.chat.completions.create, model="m", messages=USER)
        refused = eventually(lambda: admissions(limited_site).get(("ali", "concurrency")) == 1)
        held.go.set()
        assert refused
        assert asking.result(30).choices
    assert time.monotonic() - started_at >= 0.9


def test_requests_are_counted_by_the_names_of_their_keys(limited_site: Site):
    for _ in range(4):
        ask(limited_site, "schluessel")
    limited_site.engine.scripts.append(Hang())
    with ali_asked(limited_site):
        ask(limited_site)
    ask(limited_site, "wrong")
    assert admissions(limited_site) == {
        ("ali", "admitted"): 1,
        ("ali", "concurrency"): 1,
        ("baba", "admitted"): 3,
        ("baba", "rate"): 1,
    }


def admissions(site: Site) -> dict[tuple[str, str], float]:
    text = site.get("/metrics", **{"x-api-key": "sesame"}).text
    assert "sesame" not in text
    return {
        (found.labels["key"], found.labels["admission"]): found.value
        for family in text_string_to_metric_families(text)
        for found in family.samples
        if found.name == "kvstet_key_requests_total"
    }


# Logs

SECRET = "xyzzy-plugh"
SECRET_TOOL = {
    "type": "function",
    "function": {
        "name": SECRET,
        "description": SECRET,
        "parameters": {"type": "object", "properties": {SECRET: {"type": "string"}}},
    },
}
SECRET_CALL = {"id": "1", "type": "function", "function": {"name": SECRET, "arguments": f'{{"{SECRET}": 1}}'}}
SECRET_CHAT = [
    {"role": "system", "content": SECRET},
    {"role": "user", "content": SECRET},
    {"role": "assistant", "content": SECRET, "tool_calls": [SECRET_CALL]},
    {"role": "tool", "tool_call_id": "1", "content": SECRET},
]

BODIES: list[tuple[str, object]] = [
    (CHAT, {"messages": SECRET_CHAT, "tools": [SECRET_TOOL]}),
    (CHAT, {"messages": SECRET_CHAT, "tools": [SECRET_TOOL], "stream": True}),
    (CHAT, {"messages": SECRET_CHAT, "stop": SECRET, "user": SECRET, "metadata": {SECRET: SECRET}, "model": SECRET}),
    (CHAT, {"messages": SECRET_CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
    (CHAT, {"messages": SECRET_CHAT, "json_schema": {"$ref": SECRET}}),
    (CHAT, {"messages": SECRET_CHAT, "grammar": SECRET}),
    (CHAT, {"messages": SECRET}),
    (CHAT, {"messages": [SECRET]}),
    (CHAT, {"messages": [{"role": SECRET, "content": SECRET}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": SECRET}]}]}),
    (CHAT, {"messages": [*SECRET_CHAT, {"role": "tool", "content": "bad", "tool_call_id": SECRET}]}),
    (CHAT, {"messages": SECRET_CHAT, "tools": [SECRET]}),
    (CHAT, {"messages": SECRET_CHAT, "tools": [{SECRET: SECRET}]}),
    (CHAT, {"messages": SECRET_CHAT, "temperature": SECRET}),
    (CHAT, {"messages": SECRET_CHAT, "logit_bias": {SECRET: 1}}),
    (CHAT, {"messages": [{"role": "user", "content": SECRET * 1000}]}),
    (CHAT, f'{{"messages": {SECRET}'.encode()),
    (CHAT, f'{{"{SECRET}": "\ud83d'.encode(errors="surrogatepass")),
    (CHAT, f'{{"messages": [{{"role": "user", "content": "{SECRET}'.encode() + b"\xff\xfe"),
    (CHAT, (SECRET * 200_000).encode()),
    (CHAT, f'{"[" * 5000}"{SECRET}"{"]" * 5000}'.encode()),
    ("/v1/completions", {"prompt": SECRET, "suffix": SECRET}),
    ("/v1/completions", {"prompt": [SECRET, SECRET], "echo": True, "logprobs": 2}),
    ("/tokenize", {"content": SECRET}),
    ("/detokenize", {"tokens": [SECRET]}),
    ("/apply-template", {"messages": SECRET_CHAT}),
]


def told(record: logging.LogRecord) -> str:
    """All that a record may tell: its line, its traceback, and what a handler finds beside them."""
    return logging.Formatter("%(name)s %(message)s").format(record) + repr(vars(record))


@pytest.mark.parametrize(
    "script",
    [
        reply(SECRET),
        Say(tokens_of(SECRET), error=EngineCrashed("Died."), token_seconds=0.001),
        Refuse(EngineCrashed("Died.")),
        Refuse(RuntimeError("a bug")),
    ],
    ids=["reply", "crash", "refusal", "bug"],
)
def test_no_log_tells_what_was_asked_or_said(script: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    for name in ("kvstet", "kvstet.api", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        caplog.set_level(logging.DEBUG, name)
    keys = (ApiKey("ali", "sesame"),)
    statuses: set[int] = set()
    with running(ScriptedEngine(script), api_keys=keys, max_body_bytes=2_000_000) as site:
        with site.http(headers={"x-api-key": "sesame"}) as client:
            for path, body in BODIES:
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                statuses.add(client.post(path, content=content).status_code)
        site.get("/v1/models", **{"x-api-key": SECRET})
        with asked_raw(site, f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n{SECRET}\r\n\r\n") as connection:
            assert connection.recv(100)
    assert {200, 400, 413} <= statuses
    lines = [told(record) for record in caplog.records]
    assert sum("key ali" in line for line in lines) == len(BODIES), "the logs were heard"
    assert [line for line in lines if SECRET in line or "sesame" in line] == []


@contextlib.contextmanager
def asked_raw(site: Site, text: str) -> Iterator[socket.socket]:
    with site.connect() as connection:
        connection.sendall(text.encode())
        yield connection
