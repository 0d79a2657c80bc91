"""Traces without their text (`kvstet.traces.redaction`): counts and verdicts of all recorded sessions stay the same,
and no word of them is left."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kvstet.api.anthropic.signatures import carrying_signature_of, thinking_in
from kvstet.api.responses.sealed import seal, unseal
from kvstet.cli.recordings import recorded_requests
from kvstet.cli.trace import WRAPPINGS
from kvstet.dialects.dialect import dialect_named
from kvstet.edits.history import History
from kvstet.edits.pricing import estimated
from kvstet.edits.verdict import explained, for_log
from kvstet.providers.provider import provider_named
from kvstet.providers.simulator import Simulator
from kvstet.traces.format import Call, Header, Line, Plan, Request, Response
from kvstet.traces.keys import is_key, without_keys
from kvstet.traces.placeholders import KEPT, Placeholders
from kvstet.traces.reading import Exchange, exchanges, read_lines
from kvstet.traces.redaction import Redaction, redacted
from kvstet.types import Usage

TRACES = Path(__file__).parents[1] / "data" / "traces"
NAMES = sorted(path.name.removesuffix(".jsonl.xz") for path in TRACES.glob("*.xz"))
MODELS = ("anthropic/claude-sonnet-5", "openai/gpt-5.6", "openai/gpt-5.1")
KEY = b"k" * 32
SECONDS_BETWEEN = 5.0


@cache
def lines(name: str) -> tuple[Line, ...]:
    return tuple(read_lines(TRACES / f"{name}.jsonl.xz"))


@cache
def redacted_lines(name: str, key: bytes = KEY) -> tuple[Line, ...]:
    return tuple(map(Redaction(key, WRAPPINGS).line, lines(name)))


def told(sent: tuple[Line, ...]) -> Iterator[tuple[object, ...]]:
    """Of each request all that `kvstet explain` says, but for names of tools."""
    history = History()
    for request in recorded_requests(exchanges(sent)):
        place = history.note(request.snapshot)
        if request.reply is not None:
            history.reply(place.branch, request.reply)
        after, reuse = estimated(place, request.snapshot)
        verdict = explained(place, after, reuse, None)
        edits = [(*(value for name, value in asdict(edit).items() if name != "what"),) for edit in verdict.edits]
        kinds = [edit.what for edit in verdict.edits if not edit.kind.startswith(("tools_", "arguments_"))]
        yield request.number, verdict.kind, verdict.message, verdict.token, reuse, for_log(verdict), edits, kinds


def usages(sent: tuple[Line, ...], model: str) -> Iterator[Usage]:
    """What the provider would report, in the dialect in which it caches."""
    vendor, _, name = model.partition("/")
    provider = provider_named(vendor)
    simulators: dict[str, Simulator] = {}
    for number, exchange in enumerate(exchanges(sent)):
        if exchange.dialect is None:
            continue
        dialect, body = exchange.dialect.name, {**exchange.body, "model": name}
        if dialect not in provider.dialects or provider.rule_for(name, dialect).kind == "none":
            request = exchange.dialect.read_request(body)
            dialect = provider.dialects[0]
            body = {**dialect_named(dialect).write_request(request).body, "model": name}
        simulator = simulators.setdefault(dialect, Simulator(provider.rule_for(name, dialect)))
        yield simulator.send(body, dialect, at_seconds=exchange.request.t + SECONDS_BETWEEN * number, model=name)


@pytest.mark.parametrize("name", NAMES)
def test_every_verdict_and_every_count_stays(name: str):
    before, after = list(told(lines(name))), list(told(redacted_lines(name)))
    assert before and after == before


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_a_providers_cache_does_the_same(name: str, model: str):
    before, after = list(usages(lines(name), model)), list(usages(redacted_lines(name), model))
    assert before and after == before


@pytest.mark.parametrize("name", NAMES)
def test_bodies_keep_their_form_and_their_lengths(name: str):
    for old, new in zip(lines(name), redacted_lines(name), strict=True):
        if isinstance(old, Request) and isinstance(new, Request):
            assert len(new.body_raw) == len(old.body_raw)
            assert same_shape(json.loads(old.body_raw), json.loads(new.body_raw))


def same_shape(old: object, new: object) -> bool:
    match old, new:
        case dict(), dict():
            return len(old) == len(new) and all(map(same_shape, old.values(), new.values()))
        case list(), list():
            return len(old) == len(new) and all(map(same_shape, old, new))
        case str(), str():
            return len(old) == len(new)
        case _:
            return old == new


@pytest.mark.parametrize("name", NAMES)
def test_no_word_of_what_was_said_is_left(name: str):
    """Of six letters or more: of shorter ones, some come out by chance. A word that the redacted file has only where
    the API has it (names of its fields, a role) is none that was said: so those of all its texts are compared."""
    said = words(texts_of_all(lines(name)))
    left = words(texts_of_all(redacted_lines(name)))
    assert len(said) > 100
    assert {word for word in said & left if word not in KEPT and not word.endswith(("error", "errors"))} == set()


def words(texts: Iterator[str]) -> set[str]:
    return {word.casefold() for text in texts for word in re.findall(r"[^\W\d_]{6,}", text)}


def texts_of_all(sent: tuple[Line, ...]) -> Iterator[str]:
    """All that a line holds but for names of fields and values of a few words, without looking at `Redaction`."""
    for line in sent:
        match line:
            case Request():
                yield from (value for name, value in line.headers if not is_plain(name))
                yield from leaves(json.loads(line.body_raw), ())
            case Response(plan=Plan() as plan):
                yield from (plan.text, plan.reasoning, line.kind)
                yield from (text for call in plan.calls for text in (call.name, call.args_raw, call.id))
            case _:
                yield from ()


def is_plain(name: str) -> bool:
    return re.match(r"accept|anthropic|connection|content|user-agent|x-app|x-stainless", name, re.I) is not None


_ENUMS = frozenset(
    {"$schema", "display", "effort", "format", "include", "model", "phase", "role", "status", "summary", "tool_choice"}
    | {"ttl", "type", "verbosity"}
)
"""Fields of which the API says what they may hold."""
_NAMED = frozenset({"properties", "$defs", "definitions"})


def leaves(value: object, place: tuple[str, ...]) -> Iterator[str]:
    last = place[-1] if place else ""
    match value:
        case str():
            if last not in _ENUMS or "input" in place[1:] or len(value) > 60:
                yield value
        case list():
            for each in value:
                yield from leaves(each, place)
        case dict():
            for key, each in value.items():
                if last in _NAMED or "metadata" in place:
                    yield key
                yield from leaves(each, (*place, key))
        case _:
            yield from ()


def test_the_same_key_gives_the_same_and_another_one_does_not():
    assert [Redaction(KEY, WRAPPINGS).line(line) for line in lines("pi")] == list(redacted_lines("pi"))
    first, other = (
        next(line for line in redacted_lines("pi", key) if isinstance(line, Request)) for key in (KEY, b"o")
    )
    assert first.body_raw != other.body_raw and len(first.body_raw) == len(other.body_raw)


SECRETS = ["Zaphod Beeblebrox", "hunter2swordfish", "/home/zaphod/heartofgold", "zaphod@example.org", "42-SESAME-99"]


def planted(secret: str) -> list[Line]:
    """In all places that a trace has for it."""
    tool = {
        "name": secret,
        "description": secret,
        "input_schema": {
            "type": "object",
            "title": secret,
            "properties": {secret: {"type": "string", "enum": [secret], "default": secret, "description": secret}},
            "required": [secret],
            "$defs": {secret: {"const": secret}},
            secret: {"type": "object"},
        },
    }
    content: list[dict[str, Any]] = [
        {"type": "text", "text": f"It is {secret}."},
        {"type": "tool_use", "id": "1", "name": secret, "input": {secret: {"type": secret, "role": [secret]}}},
        {"type": "tool_result", "tool_use_id": "1", "content": json.dumps({"out": f"{secret}\n", secret: secret})},
        {"type": "thinking", "thinking": secret, "signature": carrying_signature_of(secret)},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": secret}},
        {"type": "tool_reference", "tool_name": secret},
    ]
    body = {
        "model": "m",
        "system": [{"type": "text", "text": secret, "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": content}],
        "tools": [tool],
        "metadata": {"user_id": json.dumps({"account": secret}), secret: secret},
        "stop_sequences": [secret],
        "user": secret,
        "input": [{"type": "function_call", "arguments": json.dumps({secret: secret}), "call_id": secret}],
        "unheard_of": {"deep": [secret]},
    }
    account = {
        "verdict": f"The client added tools ({secret}).",
        "edits": [{"kind": "tools_added", "what": [secret], "sentence": f"Tools ({secret})."}],
        "computed": 3,
        "unheard_of": secret,
    }
    call = Call(name=secret, args_raw=json.dumps({secret: [secret]}), id=secret)
    plan = Plan(reasoning=secret, text=secret, calls=[call])
    headers = [("x-session-id", secret), ("x-turn", json.dumps({"at": secret})), ("user-agent", "client/1.0")]
    return [
        Header(kvstet_trace=1),
        Request(
            seq=1,
            path=f"/{secret}/v1/messages?who={secret}",
            headers=headers,
            body_raw=json.dumps(body, ensure_ascii=False),
            label=secret,
        ),
        Response(seq=1, status=200, plan=plan, tokens=[1, 2], kvstet=account, kind=secret, usage={"input_tokens": 9}),
        Request(seq=2, path="/v1/messages", body_raw=f'{{"torn": "{secret}'),
        Response(seq=2, status=400, error_raw=json.dumps({"error": {"type": "x", "message": f"Bad: {secret}"}})),
        Request(seq=3, path="/v1/messages", body_raw=f"no JSON: {secret}"),
        Response(seq=3, status=500, error_raw=f"<html>{secret}</html>"),
    ]


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_found_nowhere(secret: str):
    found = list(map(Redaction(KEY, WRAPPINGS).line, planted(secret)))
    written = " ".join(map(repr, found)).casefold()
    for part in re.findall(r"[^\W\d_]{4,}", secret.casefold()):
        assert part not in written or part in {"session"}, part
    assert secret.casefold() not in written
    header, first, reply, *_ = found
    assert isinstance(header, Header) and header.redacted == "text"
    assert isinstance(first, Request) and "client/1.0" in dict(first.headers).values()
    body = json.loads(first.body_raw)
    (schema,) = [tool["input_schema"] for tool in body["tools"]]
    (name,) = schema["properties"]
    assert schema["required"] == [name] and schema["properties"][name]["type"] == "string"
    assert isinstance(reply, Response) and reply.tokens is None and reply.usage == {"input_tokens": 9}
    assert reply.plan is not None and list(json.loads(reply.plan.calls[0].args_raw)) == [name]
    assert reply.kvstet is not None and reply.kvstet["computed"] == 3
    assert reply.kvstet["verdict"] == f"The client added tools ({Placeholders(KEY).text(secret)})."


def test_reasoning_that_kvstet_wrapped_is_replaced_within():
    text = "I think that the tests fail."
    body = {
        "input": [{"type": "reasoning", "encrypted_content": seal(text)}, {"signature": carrying_signature_of(text)}]
    }
    line = Redaction(KEY, WRAPPINGS).line(Request(seq=1, path="/v1/responses", body_raw=json.dumps(body)))
    assert isinstance(line, Request)
    sealed, signed = json.loads(line.body_raw)["input"]
    assert unseal(sealed["encrypted_content"]) == Placeholders(KEY).text(text) == thinking_in("", signed["signature"])


def test_one_exchange_is_redacted_too():
    exchange = next(iter(exchanges(lines("pi"))))
    found = redacted(exchange, KEY)
    assert found.request == Redaction(KEY).request(exchange.request)
    assert redacted(Exchange(exchange.request), KEY).response is None


KEY_FIELDS = """
    Authorization X-Api-Key x-goog-api-key Cookie Set-Cookie X-Amz-Security-Token api-key proxy-authorization
    ocp-apim-subscription-key x-auth-token x-client-secret
"""


@pytest.mark.parametrize("name", KEY_FIELDS.split())
def test_header_fields_with_keys_are_known_by_their_names(name: str):
    assert is_key(name)


@pytest.mark.parametrize("name", ["content-type", "x-session-id", "anthropic-beta", "idempotency-key", "user-agent"])
def test_other_header_fields_stay(name: str):
    assert not is_key(name)


def test_keys_are_taken_out_wherever_requests_have_them():
    secret = "sesame0123456789abcdef"
    request = Request(
        seq=1,
        path=f"/v1/x?key={secret}&api_key={secret}&beta=true&access_token={secret}",
        headers=[("x-note", f"Bearer {secret}"), ("referer", f"https://a/?api-key={secret}"), ("a", f"sk-{secret}")],
        body_raw=json.dumps(
            {"mcp_servers": [{"authorization_token": secret}], "api_key": f'{secret}"{secret}', "n": 1}
        ),
    )
    call = Call(name="curl", args_raw=json.dumps({"api_key": secret}))
    found = [without_keys(request), without_keys(Response(seq=1, status=200, plan=Plan(calls=[call])))]
    assert secret not in repr(found)
    assert isinstance(found[0], Request)
    assert json.loads(found[0].body_raw) == {
        "mcp_servers": [{"authorization_token": "[redacted]"}],
        "api_key": "[redacted]",
        "n": 1,
    }
    assert without_keys(found[0]) == found[0]
