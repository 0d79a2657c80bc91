"""What a running server says of itself, asked before a client is pointed at it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from kvstet.errors import KvstetError

DEFAULT_PORT = 8080
ANSWER_SECONDS = 10.0

UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 401, 403, 404

T = TypeVar("T")


class CannotLaunch(KvstetError):
    """A client cannot be started: it is not installed, or the server does not answer as it should."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model on a server."""

    model: str
    context_length: int | None
    """Most tokens of a request; None: the server does not say."""


class _Meta(msgspec.Struct):
    n_ctx: int | None = None


class _Model(msgspec.Struct):
    id: str
    meta: _Meta | None = None

    def served(self) -> Served:
        return Served(self.id, self.meta.n_ctx if self.meta else None)


class _Models(msgspec.Struct):
    data: list[_Model]


def base_url(text: str) -> str:
    """A server's address as a user writes it, without ``/v1`` and the slash at its end. Raises CannotLaunch."""
    url = (text if "://" in text else f"http://{text}").rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise CannotLaunch(f"{text!r} is not an address like http://127.0.0.1:{DEFAULT_PORT}.")
    return url


def ask(url: str, api_key: str, model: str | None) -> Served:
    """The server's model of this name, or its first. Raises CannotLaunch."""
    headers = {"authorization": f"Bearer {api_key}"}
    # Without proxies from the environment: they cannot reach this machine's loopback address.
    with httpx2.Client(base_url=url, headers=headers, timeout=ANSWER_SECONDS, trust_env=False) as client:
        models = _decode(_get(client, "/v1/models"), _Models, url).data
        if model is None:
            if not models:
                raise CannotLaunch(f"The server at {url} has no model.")
            return models[0].served()
        for one in models:
            if one.id == model:
                return one.served()
        # Not listed, but perhaps served: an alias, or any name at all.
        answer = _get(client, f"/v1/models/{quote(model)}")
        if answer.status_code == NOT_FOUND:
            known = ", ".join(one.id for one in models) or "none"
            raise CannotLaunch(f"The server at {url} has no model {model!r}. It has: {known}.")
        return Served(model, _decode(answer, _Model, url).served().context_length)


def _get(client: httpx2.Client, path: str) -> httpx2.Response:
    url = str(client.base_url).rstrip("/")
    try:
        answer = client.get(path)
    except httpx2.TimeoutException as error:
        raise CannotLaunch(f"The server at {url} did not answer within {ANSWER_SECONDS:.0f} seconds.") from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise CannotLaunch(_start_hint(url)) from error
    if answer.status_code in (UNAUTHORIZED, FORBIDDEN):
        raise CannotLaunch(f"The server at {url} wants another API key: name it with --api-key or KVSTET_API_KEY.")
    return answer


def _decode(answer: httpx2.Response, kind: type[T], url: str) -> T:
    if not answer.is_success:
        raise CannotLaunch(f"The server at {url} is not ready, or no kvstet: it answered {answer.status_code}.")
    try:
        return msgspec.json.decode(answer.content, type=kind)
    except msgspec.MsgspecError as error:
        raise CannotLaunch(f"What listens at {url} is no kvstet: its list of models cannot be read.") from error


def _start_hint(url: str) -> str:
    parts = urlsplit(url)
    port = "" if parts.port in (DEFAULT_PORT, None) else f" --port {parts.port}"
    return (
        f"No server answers at {url}. Start one with `kvstet serve MODEL.gguf{port}`, or say with --url or KVSTET_URL"
        " where it is."
    )
