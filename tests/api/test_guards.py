from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from tests.api.harness import Site, reply, running

from kvstet.api.guards import is_loopback
from kvstet.engine.fake_client import ScriptedEngine

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def locked_site() -> Iterator[Site]:
    """A server that wants one of two keys."""
    with running(ScriptedEngine(reply("Hello.")), api_keys=("sesame", "schlüssel")) as site:
        yield site


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sesame"},
        {"authorization": "bearer sesame"},
        {"x-api-key": "sesame"},
        {"x-api-key": "wrong", "authorization": "Bearer sesame"},
    ],
)
def test_a_key_opens(locked_site: Site, headers: dict[str, str]):
    assert locked_site.get("/v1/models", **headers).status_code == 200


def test_any_of_the_keys_opens(locked_site: Site):
    with locked_site.http() as client:
        headers = [(b"x-api-key", "schlüssel".encode())]
        assert client.get("/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Basic sesame"},
        {"x-api-key": ""},
        {"x-api-key": "sesame2"},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/tokenize", "/nothing"])
def test_without_a_key_nothing_opens(locked_site: Site, path: str, headers: dict[str, str]):
    response = locked_site.get(path, **headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/", "/health", "/v1/health"])
def test_health_needs_no_key(locked_site: Site, path: str):
    assert locked_site.get(path).status_code == 200


def test_the_sdk_raises_on_a_wrong_key(locked_site: Site):
    with locked_site.sdk(api_key="sesame") as client:
        assert client.chat.completions.create(model="m", messages=USER).choices  # type: ignore[arg-type]
    with locked_site.sdk(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:9"])
def test_local_names_are_answered(site: Site, host: str):
    assert site.get("/health", host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "localhost.evil.example", "10.0.0.1", "x:y:z", ""]
)
def test_other_names_are_not_so_that_no_web_page_gets_in(site: Site, host: str):
    response = site.get("/v1/models", host=host)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "invalid_host"


def test_no_origin_is_allowed(site: Site):
    with site.http() as client:
        response = client.options("/v1/models", headers={"origin": "http://evil.example"})
    assert response.status_code == 405
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_server_that_listens_to_the_network_answers_to_any_name():
    with running(ScriptedEngine(), host="0.0.0.0") as site, site.http() as client:
        assert client.get("/health", headers={"host": "box.example"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.5", False),
        ("box.example", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, answer: bool):
    assert is_loopback(host) is answer
