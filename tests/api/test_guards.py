"""Keys, host names and web pages: who comes in, and who does not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx2
import openai
import pytest
from tests.api.harness import Site, reply, running

from kvstet.addresses import is_loopback
from kvstet.api.access import BadAccess
from kvstet.api.guards import host_name, origin
from kvstet.config import ApiKey
from kvstet.engine.fake_client import Refuse, ScriptedEngine

USER = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def locked_site() -> Iterator[Site]:
    """A server that wants one of two keys."""
    with running(
        ScriptedEngine(reply("Hello.")), api_keys=(ApiKey("ali", "sesame"), ApiKey("baba", "schlüssel"))
    ) as site:
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
        assert client.chat.completions.create(model="m", messages=USER).choices
    with locked_site.sdk(api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:9",
        "[0:0:0:0:0:0:0:1]:8080",
    ],
)
def test_local_names_are_answered(site: Site, host: str):
    assert site.get("/health", host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "localhost:evil.example",
        "localhost@evil.example",
        "10.0.0.1",
        "[2001:db8::1]:8080",
        "[::1].evil.example",
        "::1",
        "x:y:z",
        "*",
        "",
    ],
)
def test_other_names_are_not_so_that_no_web_page_gets_in(site: Site, host: str):
    response = site.get("/v1/models", host=host)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "invalid_host"


def test_a_server_on_ipv6_answers_to_its_address():
    with running(ScriptedEngine(), host="::1") as site:
        assert site.url.startswith("http://[::1]:")
        assert site.get("/health").status_code == 200
        assert site.get("/v1/models", host="evil.example").status_code == 403


def test_further_names_are_answered_beside_the_local_ones():
    with running(ScriptedEngine(), allowed_hosts=("box.example", "2001:db8::1")) as site:
        for host in ("box.example", "BOX.example.:8080", "[2001:db8:0::1]:8080", "localhost"):
            assert site.get("/v1/models", host=host).status_code == 200
        for host in ("sub.box.example", "evil.example"):
            assert site.get("/v1/models", host=host).status_code == 403


def test_a_star_allows_any_name():
    with running(ScriptedEngine(), allowed_hosts=("*",)) as site:
        assert site.get("/v1/models", host="evil.example").status_code == 200


def test_a_server_that_listens_to_the_network_holds_to_the_names_it_was_told():
    with running(ScriptedEngine(), host="0.0.0.0", allowed_hosts=("box.example",)) as site:
        assert site.get("/v1/models", host="box.example:80").status_code == 200
        assert site.get("/v1/models").status_code == 200
        assert site.get("/v1/models", host="evil.example").status_code == 403


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("box.example", "box.example"),
        (" Box.Example:8080 ", "box.example"),
        ("2001:DB8:0::1", "[2001:db8::1]"),
        ("[::1]:8080", "[::1]"),
        ("fe80::1%eth0", "[fe80::1]"),
        ("*", "*"),
    ],
)
def test_host_names_are_brought_into_one_spelling(text: str, name: str):
    assert host_name(text) == name


@pytest.mark.parametrize("text", ["", "http://box.example", "box.example/v1", "a b", "*.example", "box.example:http"])
def test_what_is_no_host_name_is_refused(text: str):
    with pytest.raises(BadAccess, match="not a host name"):
        host_name(text)


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
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("192.168.0.5", False),
        ("box.example", False),
    ],
)
def test_loopback_is_told_from_the_rest(host: str, answer: bool):
    assert is_loopback(host) is answer


# Web pages

PAGE, FOREIGN_PAGE = "http://localhost:3000", "http://evil.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}


def cors_headers(response: httpx2.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("access-control")}


def options(site: Site, path: str, **headers: str) -> httpx2.Response:
    with site.http() as client:
        return client.options(path, headers=headers)


@pytest.fixture(scope="module")
def paged_site() -> Iterator[Site]:
    """A server that wants a key, and that one web page may use."""
    with running(ScriptedEngine(reply("Hello.")), api_keys=(ApiKey("ali", "sesame"),), cors_origins=(PAGE,)) as site:
        yield site


def test_no_page_is_allowed_unless_told(site: Site):
    assert options(site, "/v1/models", origin=PAGE, **PREFLIGHT).status_code == 405
    for response in (options(site, "/v1/models", origin=PAGE, **PREFLIGHT), site.get("/v1/models", origin=PAGE)):
        assert cors_headers(response) == {}


def test_a_page_may_ask_without_a_key_whether_it_may_send_one(paged_site: Site):
    response = options(paged_site, "/v1/chat/completions", origin=PAGE, **PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in response.headers


def test_another_page_may_not(paged_site: Site):
    response = options(paged_site, "/v1/chat/completions", origin=FOREIGN_PAGE, **PREFLIGHT)
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers
    response = paged_site.get("/v1/models", origin=FOREIGN_PAGE, **{"x-api-key": "sesame"})
    assert "access-control-allow-origin" not in response.headers


def test_a_page_still_needs_a_key_and_can_read_that_it_does(paged_site: Site):
    response = paged_site.get("/v1/models", origin=PAGE)
    assert response.status_code == 401
    assert response.headers["access-control-allow-origin"] == PAGE
    response = paged_site.get("/v1/models", origin=PAGE, **{"x-api-key": "sesame"})
    assert response.status_code == 200
    assert "x-request-id" in response.headers["access-control-expose-headers"]


def test_a_page_can_read_that_the_server_failed(paged_site: Site):
    paged_site.engine.scripts.append(Refuse(RuntimeError("a bug")))
    with paged_site.http() as client:
        headers = {"origin": PAGE, "x-api-key": "sesame"}
        response = client.post("/v1/chat/completions", json={"messages": USER}, headers=headers)
    assert response.status_code == 500
    assert response.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("content_type", ["text/plain", "Text/Plain; charset=utf-8", "multipart/form-data", ""])
def test_a_foreign_page_cannot_send_blindly(site: Site, content_type: str):
    """As browsers do with any server: they ask for leave only to read the answer."""
    headers = {"origin": FOREIGN_PAGE, "content-type": content_type}
    with site.http() as client:
        response = client.post("/v1/chat/completions", content=json.dumps({"messages": USER}), headers=headers)
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "invalid_origin"
    assert site.engine.requests == []


def test_programs_may_send_json_as_plain_text(site: Site):
    with site.http() as client:
        headers = {"content-type": "text/plain"}
        response = client.post("/v1/chat/completions", content=json.dumps({"messages": USER}), headers=headers)
    assert response.status_code == 200


def test_an_allowed_page_may_send_json_as_plain_text(paged_site: Site):
    headers = {"origin": PAGE, "content-type": "text/plain", "x-api-key": "sesame"}
    with paged_site.http() as client:
        response = client.post("/v1/chat/completions", content=json.dumps({"messages": USER}), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("text", "lean"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("HTTPS://App.Example", "https://app.example"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("vscode-webview://abc", "vscode-webview://abc"),
        ("*", "*"),
        ("null", "null"),
    ],
)
def test_origins_are_spelt_as_browsers_do(text: str, lean: str):
    assert origin(text) == lean


@pytest.mark.parametrize(
    "text", ["", "localhost:3000", "app.example", "https://app.example/chat", "https://*.example", "http://"]
)
def test_what_is_no_origin_is_refused(text: str):
    with pytest.raises(BadAccess, match="not an origin"):
        origin(text)
