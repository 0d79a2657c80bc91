"""A gateway is put together from the table of providers and from what the user says."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.gateway.gateway_harness import Recorder, serving
from tests.gateway.scripted import vendor
from typer.testing import CliRunner

from kvstet.cli.main import app
from kvstet.config import ServerOptions
from kvstet.errors import InvalidRequest, UnknownProvider
from kvstet.gateway.building import GatewayOptions, build, provider_of, upstream_of
from kvstet.gateway.changing.changes import CHANGES
from kvstet.gateway.changing.preparer import Models
from kvstet.gateway.headers import Credential
from kvstet.gateway.upstream import Upstream
from kvstet.providers.provider import provider_named, providers


def target(base: str, dialect: str | None, path: bytes, query: bytes = b"") -> tuple[str, bytes]:
    place = Upstream("x", dict.fromkeys(("chat", "messages"), base)).place(dialect, path, query)
    return str(place.server), place.target


@pytest.mark.parametrize(
    ("base", "dialect", "path", "expected"),
    [
        ("http://h:1", "chat", b"/v1/chat/completions", b"/v1/chat/completions"),
        ("http://h:1/", None, b"/v1/models", b"/v1/models"),
        ("http://h:1/v1", "chat", b"/v1/chat/completions", b"/v1/chat/completions"),
        ("http://h:1/v1/", "messages", b"/v1/messages", b"/v1/messages"),
        ("http://h:1/v1", "chat", b"/chat/completions", b"/v1/chat/completions"),
        ("http://h:1/openai/v1", "chat", b"/v1/chat/completions", b"/openai/v1/chat/completions"),
        ("http://h:1/api/paas/v4", "chat", b"/v1/chat/completions", b"/api/paas/v4/chat/completions"),
        ("http://h:1/anthropic", "messages", b"/v1/messages", b"/anthropic/v1/messages"),
        ("http://h:1/v1", None, b"/v1x/%2e%2e", b"/v1/v1x/%2e%2e"),
    ],
)
def test_paths_lie_where_an_sdk_would_ask_for_them(base: str, dialect: str | None, path: bytes, expected: bytes):
    assert target(base, dialect, path) == ("http://h:1/", expected)


def test_queries_stay_as_they_are():
    assert target("http://h/v1", "chat", b"/v1/x", b"a=%20&b=+&&") == ("http://h/", b"/v1/x?a=%20&b=+&&")


@pytest.mark.parametrize("name", [row.name for row in providers()])
def test_every_provider_of_the_table_can_be_an_upstream(name: str):
    """Or it is said what is missing."""
    options, row = GatewayOptions(upstream=name), provider_named(name)
    if any(word.isupper() for url in row.base_urls.values() for word in url.replace("/", ".").split(".")):
        with pytest.raises(InvalidRequest, match="address of your own"):
            provider_of(options)
    elif not set(row.dialects) & {"chat", "responses", "messages"}:
        with pytest.raises(InvalidRequest, match="speaks none of"):
            upstream_of(options, provider_of(options))
    else:
        assert set(upstream_of(options, provider_of(options)).bases) <= set(row.dialects)


def test_the_key_goes_where_the_provider_wants_it():
    options = GatewayOptions(upstream="anthropic", key="sk")
    assert upstream_of(options, provider_of(options)).credential("chat") == Credential(b"x-api-key", b"sk")
    options = GatewayOptions(upstream="openai", key="sk")
    assert upstream_of(options, provider_of(options)).credential("chat") == Credential(b"authorization", b"Bearer sk")


@pytest.mark.parametrize("upstream", ["http://h:1", "vllm"])
def test_where_nobody_says_where_the_key_goes_it_goes_where_the_dialects_sdk_puts_it(upstream: str):
    options = GatewayOptions(upstream=upstream, key="sk")
    built = upstream_of(options, provider_of(options))
    assert built.credential("messages") == Credential(b"x-api-key", b"sk")
    for name in ("chat", "responses", None):
        assert built.credential(name) == Credential(b"authorization", b"Bearer sk")


def test_paths_of_no_dialect_lie_where_openais_do():
    """Where a provider speaks Anthropic's dialect, too, that has a place of its own, in which there is nothing else."""
    options = GatewayOptions(upstream="zai")
    place = upstream_of(options, provider_of(options)).place(None, b"/v1/models", b"")
    assert (str(place.server), place.target) == ("https://api.z.ai/", b"/api/paas/v4/models")


def test_a_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://user:secret@h:1")
    monkeypatch.setenv("all_proxy", "socks5://user:secret@h:1")
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InvalidRequest, match="ALL_PROXY") as caught:
        build(GatewayOptions(upstream="openai", keeps_ledger=False), ServerOptions())
    assert "secret" not in str(caught.value)


def test_a_host_may_be_written_in_capitals():
    options = GatewayOptions(upstream="http://MYHOST:8000/v1")
    assert upstream_of(options, provider_of(options)).bases["chat"] == "http://MYHOST:8000/v1"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x",
        "ftp://user:secret@host",
        "http://",
        "http://[::1",
        "http://h:99999",
        "http://h:port",
        "http://h\x01",
        "http://user:secret@host/v1",
        "http://host/v1?key=secret",
    ],
)
def test_an_address_that_is_none_is_refused(url: str):
    with pytest.raises(InvalidRequest) as caught:
        provider_of(GatewayOptions(upstream=url))
    assert "secret" not in str(caught.value)


def test_an_unknown_provider_is_named():
    with pytest.raises(UnknownProvider, match="nobody"):
        provider_of(GatewayOptions(upstream="nobody"))


def test_only_the_dialects_that_are_named_are_spoken():
    options = GatewayOptions(upstream="http://h:1/v1", dialects=("chat",))
    assert dict(upstream_of(options, provider_of(options)).bases) == {"chat": "http://h:1/v1"}
    with pytest.raises(InvalidRequest, match="no dialect"):
        upstream_of(GatewayOptions(upstream="openai", dialects=("klingon",)), provider_of(options))


@pytest.mark.parametrize(
    ("options", "spoken"),
    [
        ({}, {"messages", "chat"}),
        ({"optimises": True}, {"messages"}),
        ({"optimises": True, "dialects": ("chat",)}, {"chat"}),
        ({"optimises": True, "upstream": "http://h/v1"}, {"messages", "responses", "chat"}),
        ({"optimises": True, "upstream": "openai"}, {"responses", "chat"}),
    ],
)
def test_dialects_in_which_nothing_is_cached_are_left_out_where_it_shall_be(options: dict[str, Any], spoken: set[str]):
    wanted = GatewayOptions(**{"upstream": "anthropic", **options})
    assert set(upstream_of(wanted, provider_of(wanted)).bases) == spoken


def test_nothing_is_left_out_where_a_model_is_cached_in_no_dialect():
    wanted = GatewayOptions(upstream="gemini", optimises=True, models=Models("gemini-2.0-flash"))
    assert set(upstream_of(wanted, provider_of(wanted)).bases) == {"chat"}


def test_a_key_of_other_letters_is_none(monkeypatch: pytest.MonkeyPatch):
    """It cannot stand in a header."""
    monkeypatch.setenv("KVSTET_TEST_KEY", "schlüssel-✓")
    result = CliRunner().invoke(app, ["gateway", "--upstream", "openai", "--key-env", "KVSTET_TEST_KEY"])
    assert isinstance(result.exception, InvalidRequest)
    assert "holds no key" in str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--upstream", "openai", "--without", "nothing"], "no change 'nothing'"),
        (["--upstream", "openai", "--map", "a"], "CLIENT=UPSTREAM"),
        (["--upstream", "openai", "--key-env", "KVSTET_NO_SUCH_KEY"], "KVSTET_NO_SUCH_KEY holds no key"),
        (["--upstream", "openai", "--api-key", "x"], "--key-env"),
    ],
)
def test_what_cannot_be_is_said_before_anything_listens(arguments: list[str], complaint: str):
    result = CliRunner().invoke(app, ["gateway", *arguments])
    assert isinstance(result.exception, InvalidRequest)
    assert complaint in str(result.exception)


def test_the_command_serves_until_it_is_told_to_stop():
    recorder = Recorder(plan=vendor("chat"))
    with serving(recorder) as url:
        command = [sys.executable, "-m", "kvstet", "gateway", "--upstream", url, "--port", "0", "--no-ledger"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            try:
                first = process.stderr.readline()
                address = re.search(r"http://[0-9.]+:[0-9]+", first)
                assert address is not None, first
                with httpx2.Client(trust_env=False) as client:
                    answer = client.post(f"{address[0]}/v1/chat/completions", json={"model": "m", "messages": []})
                    assert answer.status_code == 200
                process.send_signal(signal.SIGINT)
                said = process.stderr.read()
            finally:
                process.kill()
    assert "Stopped." in said
    assert "80.0% from the cache" in said
    assert len(recorder.requests) == 1


def test_the_document_lists_all_changes():
    text = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    assert [name for name in CHANGES if f"| `{name}` | {CHANGES[name]} |" not in text] == []
