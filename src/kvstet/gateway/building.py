"""A gateway, put together from what the user wants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx2

from kvstet.config import ServerOptions
from kvstet.context.arranging.optimiser import Optimiser
from kvstet.dialects.dialect import dialect_named
from kvstet.errors import InvalidRequest
from kvstet.gateway.app import Gateway
from kvstet.gateway.changing.asking import Asking
from kvstet.gateway.changing.preparer import Models, Preparations, Preparer
from kvstet.gateway.changing.translation import Translation
from kvstet.gateway.headers import Credential
from kvstet.gateway.observing.billing import Billing
from kvstet.gateway.observing.comparison import Comparison
from kvstet.gateway.observing.observer import Observer
from kvstet.gateway.upstream import CONNECT_SECONDS, READ_SECONDS, Upstream
from kvstet.money.ledger import Ledger
from kvstet.providers.prices import context_length_of
from kvstet.providers.provider import Provider, provider_at, provider_named

_HTTP_DIALECTS = ("messages", "responses", "chat")


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayOptions:
    """What a gateway does with what passes."""

    upstream: str
    """Name of a provider, or a base URL."""
    provider: str | None = None
    """Whose rules and prices hold at a URL; None: by its host, or nobody's."""
    dialects: tuple[str, ...] = ()
    """That the upstream speaks; empty: those of the table, or all."""
    key: str | None = field(default=None, repr=False)
    """The gateway's own; None: the clients'."""
    models: Models = field(default_factory=Models)
    optimises: bool = False
    asks_why: bool = False
    """The vendor is asked why its cache misses, although nothing else is changed."""
    without: frozenset[str] = frozenset()
    """Names of changes that are not made."""
    max_output_characters: int | None = None
    """Longer outputs of tools are cut when they enter; None: none are."""
    num_context_tokens: int | None = None
    """Of the upstream's model; None: as prices' data know it. Where nobody does, what clients drop stays dropped."""
    logs_prompts: bool = False
    keeps_ledger: bool = True
    """What requests cost is written down, for `kvstet usage`."""
    read_seconds: float = READ_SECONDS
    connect_seconds: float = CONNECT_SECONDS


def provider_of(options: GatewayOptions) -> Provider:
    """Raises UnknownProvider, and InvalidRequest where an address is not whole."""
    if "://" in options.upstream:
        _check_address(options.upstream)
        return provider_at(options.upstream, options.provider)
    provider = provider_named(options.upstream)
    for url in provider.base_urls.values():
        if any(word.isupper() for word in urlsplit(url).netloc.split(".")):
            raise InvalidRequest(
                f"{provider.title} is at an address of your own: give --upstream {url} with your words for those in"
                f" capitals, and --provider {provider.name}."
            )
    return provider


def _check_address(url: str) -> None:
    """InvalidRequest where it is none, or has more in it. It is not quoted: that may be a password."""
    no_address = "An upstream is the name of a provider, or an address like https://api.example.com/v1."
    try:
        parts, _ = urlsplit(url), httpx2.URL(url)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except (ValueError, httpx2.InvalidURL):
        raise InvalidRequest(no_address) from None
    if not is_whole:
        raise InvalidRequest(no_address)
    if parts.username or parts.password or parts.query:
        raise InvalidRequest("An upstream's address has neither a password nor a query: give keys by --key-env.")


def upstream_of(options: GatewayOptions, provider: Provider) -> Upstream:
    """Raises InvalidRequest where a dialect is not known, or not spoken."""
    for name in options.dialects:
        dialect_named(name)
    wanted = options.dialects or _HTTP_DIALECTS
    spoken = {name: provider.base_urls[name] for name in wanted if name in provider.base_urls}
    if options.dialects and "://" in options.upstream:
        # Whoever gives an address knows what is spoken there.
        spoken = dict.fromkeys(options.dialects, options.upstream)
    if options.optimises:
        spoken = _caching(spoken, provider, options.models.default or "") or spoken
    if not spoken:
        known = ", ".join(provider.dialects)
        raise InvalidRequest(f"{provider.title} speaks none of {', '.join(wanted)}; it speaks {known}.")
    credentials: dict[str, Credential] = {}
    if options.key is not None:
        credentials = {name: Credential.of(*provider.key_field(name, options.key)) for name in spoken}
    return Upstream(provider.title, spoken, credentials, options.read_seconds, options.connect_seconds)


def _caching(spoken: Mapping[str, str], provider: Provider, model: str) -> dict[str, str]:
    """Those dialects in which anything is cached: what is asked in others is translated into one of them."""
    return {name: url for name, url in spoken.items() if provider.rule_for(model, name).kind != "none"}


def build(options: GatewayOptions, server: ServerOptions) -> Gateway:
    """Raises UnknownProvider and InvalidRequest."""
    if options.key is not None and not server.api_keys:
        raise InvalidRequest("With a key of its own, the gateway needs keys for its clients: give --api-key.")
    if server.api_keys and options.key is None:
        raise InvalidRequest("Clients' keys pass to the upstream, so they cannot be the gateway's: give --key-env.")
    provider = provider_of(options)
    upstream = upstream_of(options, provider)
    asking = Asking(provider.diagnostics) if options.asks_why or options.optimises else None
    observer = Observer(
        Billing(provider, Ledger() if options.keeps_ledger else None),
        logs_prompts=options.logs_prompts,
        on_reply=asking.heard if asking is not None else None,
        comparison=Comparison(provider) if options.optimises else None,
    )
    # The first look into the prices takes half a second, for which no request should wait.
    context_length_of(provider, options.models.default or "")
    optimiser = Optimiser(
        provider,
        max_output_characters=options.max_output_characters,
        num_context_tokens=options.num_context_tokens,
    )
    preparations = Preparations(
        options.models,
        optimiser if options.optimises else None,
        asking,
        options.without,
        server.max_body_bytes,
    )
    preparer = Preparer(upstream, Translation(upstream, provider), preparations, observer.metrics.observe_failure)
    return Gateway(upstream, server, observer, preparer)
