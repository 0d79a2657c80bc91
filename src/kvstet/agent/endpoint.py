"""Where a provider's model is asked, out of its row in the table (`kvstet.providers`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast
from urllib.parse import urlsplit

from kvstet.agent.model import Endpoint
from kvstet.context.arranging.breakpoints import Marking
from kvstet.dialects.dialect import DialectName, dialect_named
from kvstet.errors import InvalidRequest
from kvstet.providers.provider import Provider

KEY_VARIABLE = "KVSTET_API_KEY"
"""Holds the key of a server that the table does not know."""

_DIALECTS: tuple[DialectName, ...] = ("chat", "messages", "responses")


def address(text: str) -> str:
    """A server's address as users write it, as an SDK would be given it: with its scheme, and with a version."""
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    return url if urlsplit(url).path else f"{url}/v1"


def endpoint_of(
    provider: Provider,
    model: str,
    environment: Mapping[str, str],
    *,
    dialect: str | None = None,
    key_variable: str | None = None,
) -> Endpoint:
    """Raises InvalidRequest: the dialect is not spoken there, the address is not whole, or there is no key."""
    spoken = _dialect(provider, dialect)
    return Endpoint(
        title=provider.title,
        url=_url(provider, spoken),
        dialect=spoken,
        headers={**provider.headers, **_credential(provider, spoken, environment, key_variable)},
        marking=Marking.by(provider.rule_for(model, spoken)),
    )


def _dialect(provider: Provider, wanted: str | None) -> DialectName:
    spoken = [name for name in provider.dialects if name in _DIALECTS]
    if wanted is not None and wanted not in spoken:
        raise InvalidRequest(f"{provider.title} does not speak {wanted!r}; it speaks {', '.join(spoken)}.")
    return cast("DialectName", wanted or spoken[0])


def _url(provider: Provider, dialect: DialectName) -> str:
    """A base URL has its version in it for OpenAI's dialects, and not for Anthropic's; users write both."""
    base, path = provider.base_urls[dialect].rstrip("/"), dialect_named(dialect).path
    parts = urlsplit(base)
    if any(word.isupper() for word in parts.netloc.split(".")):
        raise InvalidRequest(f"{provider.title} needs --url: {base} with your own words for those in capitals.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{base!r} is not an address like http://127.0.0.1:8080.")
    if dialect == "messages" or base.endswith("/v1"):
        return base.removesuffix("/v1") + path
    return base + path.removeprefix("/v1")


def _credential(
    provider: Provider, dialect: DialectName, environment: Mapping[str, str], variable: str | None
) -> dict[str, str]:
    """The header with the key. A server that the table does not know gets no key but the one that was meant for it."""
    place = provider.key
    variable = variable or (place.environment if place else KEY_VARIABLE)
    key = environment.get(variable, "").strip()
    if not key:
        if place is None or provider.is_local:
            return {}
        raise InvalidRequest(f"{provider.title} needs a key: put it into the variable {variable}.")
    return dict([provider.key_field(dialect, key)])
