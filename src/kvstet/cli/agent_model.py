"""The model that ``kvstet agent`` asks: out of the options, the table of providers, and what a local server says."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from kvstet.agent.endpoint import KEY_VARIABLE, address, endpoint_of
from kvstet.agent.meter import Meter, Step
from kvstet.agent.model import Endpoint
from kvstet.cli.clients.server import CannotLaunch, ask, base_url
from kvstet.context.writing.budget import Budget
from kvstet.context.writing.payback import Rates
from kvstet.errors import InvalidRequest
from kvstet.money.bill import Bill, bill_of
from kvstet.money.entry import LedgerEntry, entry_of
from kvstet.money.ledger import Ledger
from kvstet.providers.prices import context_length_of, price_of
from kvstet.providers.provider import Provider, provider_at, provider_named
from kvstet.types import Usage

NO_KEY = "no-key"
"""Sent where a server is asked without one."""

_LOCAL_CONTEXT_LENGTH = 32_768
"""Of a server that does not say."""

_MAX_CONTEXT_LENGTH = 200_000
"""Of a hosted model, where the user does not say: at some providers longer prompts cost more per token."""

_MAX_RESERVED_TOKENS = 16_000


URL_VARIABLE = "KVSTET_URL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What the user says. None: what the provider, or a local server, has first."""

    provider: str | None = None
    url: str | None = None
    model: str | None = None
    dialect: str | None = None
    key_variable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A model, and all that is known of it."""

    provider: Provider
    endpoint: Endpoint
    model: str
    context_length: int
    rates: Rates
    secrets: tuple[str, ...] = field(repr=False)
    """The key: no command may see it."""

    @property
    def name(self) -> str:
        return f"{self.provider.name}/{self.model}"

    def budget(self, context_length: int | None) -> Budget:
        """For requests of so many tokens; None: as many as the model takes."""
        length = context_length or self.context_length
        return Budget(context_length=length, num_reserved_tokens=min(_MAX_RESERVED_TOKENS, length // 4))

    def meter(self, session: str, ledger: Ledger) -> Meter:
        """Counts, and notes each request in the ledger."""
        return Meter(self._bill, lambda step: ledger.note(self._entry(step, session)))

    def _bill(self, usage: Usage) -> Bill:
        # Long prompts may have prices of their own.
        price = price_of(self.provider, self.model, num_input_tokens=usage.num_input_tokens or 0)
        return bill_of(usage, price)

    def _entry(self, step: Step, session: str) -> LedgerEntry:
        return entry_of(
            step.bill,
            time=time.time() - step.seconds,
            session=session,
            provider=self.provider.name,
            model=self.model,
            source="agent",
            seconds=step.seconds,
            first_token_seconds=step.first_token_seconds,
        )


def chosen(choice: Choice, environment: Mapping[str, str]) -> Chosen:
    """Raises UnknownProvider, InvalidRequest, and CannotLaunch for a local server that does not answer."""
    provider, dialect = _provider(choice, environment), choice.dialect
    variable = choice.key_variable or (provider.key.environment if provider.key else KEY_VARIABLE)
    key = environment.get(variable, "").strip()
    model, context_length = choice.model, None
    if model is None or provider.is_local:
        model, context_length = _served(provider, model, key, dialect)
    endpoint = endpoint_of(provider, model, environment, dialect=dialect, key_variable=variable)
    known = context_length_of(provider, model)
    default = _LOCAL_CONTEXT_LENGTH if provider.is_local else min(known or _MAX_CONTEXT_LENGTH, _MAX_CONTEXT_LENGTH)
    rule = provider.rule_for(model, endpoint.dialect)
    return Chosen(
        provider=provider,
        endpoint=endpoint,
        model=model,
        context_length=context_length or default,
        rates=Rates.of(provider, rule, price_of(provider, model)),
        secrets=(key,),
    )


def _provider(choice: Choice, environment: Mapping[str, str]) -> Provider:
    """By name and address. The variable for the address is of kvstet's own servers: no other one's key goes there."""
    is_own = choice.provider in (None, "kvstet")
    url = choice.url or (environment.get(URL_VARIABLE) if is_own else None)
    if url:
        return provider_at(address(url), choice.provider)
    return provider_named(choice.provider or "kvstet")


def _served(provider: Provider, model: str | None, key: str, dialect: str | None) -> tuple[str, int | None]:
    """Name of the model, and the length of its context, if the server says so.

    CannotLaunch: it has to be asked for the name, and does not answer. InvalidRequest: a hosted one has many.
    """
    if model is None and provider.key is not None and not provider.is_local:
        raise InvalidRequest(f"{provider.title} has many models: name one with --model.")
    url = provider.base_urls.get(dialect or "", provider.base_urls[provider.dialects[0]])
    try:
        # No header can end in the word before the key.
        served = ask(base_url(url), key or NO_KEY, model)
    except CannotLaunch:
        if model is None:
            raise
        # It need not tell of its models as long as the user does.
        return model, None
    return served.model, served.context_length
