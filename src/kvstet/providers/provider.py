"""What is known of each provider, read from ``table.toml``: where it is, what to send so that it caches, and its rules.

Rules are data. Whoever follows them (breakpoints, simulators, bills) asks `Provider.rule_for`, and no code anywhere
asks for a provider by name to decide what to do.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import msgspec

from kvstet.errors import UnknownProvider

RuleKind = Literal["breakpoints", "prefix", "units", "none"]
"""How entries come to be and are found: where a request is marked; any prefix; whole units (DeepSeek); not at all."""

BreakpointStyle = Literal["cache_control", "prompt_cache_breakpoint", "cachePoint"]

Certainty = Literal["stated", "quoted", "unsure"]
"""The vendor's own words; a dated third party's; nobody's, and best kept configurable."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long an entry is kept, and what writing it costs."""

    name: str
    """As requests ask for it."""
    seconds: float
    write_factor: float
    """Of the price of a fresh input token; 1.0: nothing extra."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRule:
    """What a provider does with prompts to some of its models. None: it does not say."""

    kind: RuleKind
    source: str
    """Where the rule was read."""
    checked: str
    """On that day, or in that month: YYYY-MM-DD or YYYY-MM."""
    models: tuple[str, ...] = ()
    """Patterns of model names, as the shell matches them; empty: all others."""
    dialects: tuple[str, ...] = ()
    """Empty: all."""
    is_automatic: bool = False
    """Prompts are cached without being marked."""
    min_tokens: int | None = None
    """Shorter prefixes are not cached."""
    granularity_tokens: int = 1
    """Reads come in multiples of it."""
    breakpoint_style: BreakpointStyle | None = None
    """The field that marks a block; None: nothing is marked."""
    max_breakpoints: int | None = None
    """Of one request; an automatic one counts."""
    beyond_max: Literal["error", "latest"] = "latest"
    """More marks are refused, or only the latest hold."""
    lookback_blocks: int | None = None
    """An entry is found so many blocks before a mark, the marked one counted; None: at any distance."""
    max_matched_breakpoints: int | None = None
    """Entries are looked for at so many of the latest breakpoints of a conversation."""
    lifetimes: tuple[Lifetime, ...] = ()
    """Those that can be asked for; the first is what one gets. Empty: not told."""
    ttl_field: str | None = None
    """The request's field (with dots) that asks for one of them; None: it stands in the mark, or nowhere."""
    mode_field: str | None = None
    """The request's field that says ``explicit`` where nothing shall be marked automatically."""
    reads_refresh: bool = False
    """A read makes an entry as young as a new one."""
    read_factor: float | None = None
    """Price of a token read from the cache, of that of a fresh one."""
    keeps_output: bool = False
    """What the model generates can be read like the prompt before it."""
    cache_key_field: str | None = None
    """A field of the request that keeps a conversation where its cache is."""
    needs_key: bool = False
    """Without it, nothing is cached."""
    affinity_header: str | None = None
    """A header that does what the field does."""
    system_depends_on: tuple[str, ...] = ()
    """Fields of the request; where one changes, what was cached from the system prompt on is not found."""
    messages_depend_on: tuple[str, ...] = ()
    """Likewise, from the messages on; ``images``: whether there is any."""
    strips_old_thinking: bool = False
    """A plain message of the user takes the thinking before it out of the prompt."""
    unmarked: CacheRule | None = None
    """What holds for requests without marks, where it is another rule."""
    quoted: tuple[str, ...] = ()
    """Names of fields that only third parties tell."""
    unsure: tuple[str, ...] = ()
    notes: str = ""

    @property
    def ttl_seconds(self) -> float | None:
        """How long an entry is kept unless one asks for another lifetime."""
        return self.lifetimes[0].seconds if self.lifetimes else None

    @property
    def write_factor(self) -> float:
        """Price of a token written into the cache, of that of a fresh one, unless one asks for another lifetime."""
        return self.lifetimes[0].write_factor if self.lifetimes else 1.0

    @property
    def long_write_factor(self) -> float | None:
        """The same for the next longer lifetime; None where there is only one."""
        return self.lifetimes[1].write_factor if len(self.lifetimes) > 1 else None

    def lifetime(self, name: str | None) -> Lifetime | None:
        """The one of that name; else the first."""
        return next((one for one in self.lifetimes if one.name == name), self.lifetimes[0] if self.lifetimes else None)

    def certainty_of(self, name: str) -> Certainty:
        """Of one of the fields, by its name."""
        if name in self.unsure:
            return "unsure"
        return "quoted" if name in self.quoted else "stated"

    def fits(self, model: str, dialect: str) -> bool:
        is_spoken = not self.dialects or dialect in self.dialects
        return is_spoken and (not self.models or any(fnmatchcase(model, pattern) for pattern in self.models))


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where a provider wants the key."""

    header: str
    environment: str
    """Name of the variable that its SDK reads it from."""
    scheme: str = ""
    """A word before the key, like ``Bearer``."""


@dataclass(frozen=True, slots=True)
class Reports:
    """Where replies tell what the cache did; `kvstet.providers.usage` reads them all."""

    read: str | None = None
    write: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """The vendor's own word on why a request missed."""

    dialect: str
    ask: str
    """The request's field, with dots; it takes the ID of the reply before."""
    answer: str
    """The reply's field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """One row of the table."""

    name: str
    title: str
    rules: tuple[CacheRule, ...] = field(repr=False)
    """The first that fits holds."""
    base_urls: Mapping[str, str]
    """Of each dialect that is spoken there, as its SDK would be given it. Words in capitals are the user's to fill."""
    hosts: tuple[str, ...] = ()
    """Patterns of the names under which it is reached."""
    key: KeyPlace | None = None
    """None: it asks for none."""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """To be sent with each request."""
    reports: Reports = field(default_factory=Reports, repr=False)
    diagnostics: tuple[Diagnostics, ...] = field(default=(), repr=False)
    prices_as: str | None = None
    """Its name in `genai-prices`; None: its prices are not there."""
    is_local: bool = False
    """It runs on the user's own machines and sends no bills: a token costs the time to compute it."""

    @property
    def dialects(self) -> tuple[str, ...]:
        return tuple(self.base_urls)

    def rule_for(self, model: str, dialect: str | None = None) -> CacheRule:
        """What holds for a model, in one dialect or the provider's first. A model's name may have its maker's before
        it, with a slash."""
        name = model.lower()
        names = (name, name.rpartition("/")[2])
        asked = dialect or self.dialects[0]
        return next(rule for rule in self.rules if any(rule.fits(each, asked) for each in names))

    def key_field(self, dialect: str, key: str) -> tuple[str, str]:
        """The header in which a key is sent. Where the table names none, as the dialect's own SDK sends it."""
        if self.key is not None:
            return self.key.header, f"{self.key.scheme} {key}".strip()
        return ("x-api-key", key) if dialect == "messages" else ("authorization", f"Bearer {key}")

    def at(self, url: str) -> Provider:
        """The same, reached under another base URL."""
        return replace(self, base_urls=dict.fromkeys(self.base_urls, url.rstrip("/")))


def providers() -> tuple[Provider, ...]:
    """All rows, in the table's order."""
    return tuple(_table().values())


def provider_named(name: str) -> Provider:
    """Raises UnknownProvider."""
    found = _table().get(name.lower())
    if found is None:
        raise UnknownProvider(f"There is no provider {name!r}; known are: {', '.join(_table())}.")
    return found


def provider_at(url: str, name: str | None = None) -> Provider:
    """Who answers there: the provider of that name, else the one whose host it is, else a server of which nothing is
    known. Raises UnknownProvider."""
    if name is not None:
        return provider_named(name).at(url)
    host = (urlsplit(url).hostname or "").lower()
    found = next((each for each in providers() if any(fnmatchcase(host, one) for one in each.hosts)), None)
    if found is not None:
        return found.at(url) if any(word.isupper() for word in _words(found)) else found
    return replace(_generic(), title=host or url).at(url)


def _words(provider: Provider) -> list[str]:
    return [part for url in provider.base_urls.values() for part in (urlsplit(url).netloc).split(".")]


@cache
def _raw() -> dict[str, Any]:
    return tomllib.loads(resources.files("kvstet.providers").joinpath("table.toml").read_text(encoding="utf-8"))


@cache
def _table() -> dict[str, Provider]:
    return {row["name"]: _provider(row) for row in cast("list[dict[str, Any]]", _raw()["provider"])}


@cache
def _generic() -> Provider:
    urls = dict.fromkeys(("chat", "responses", "messages"), "")
    return _provider({"name": "other", "base_urls": urls, **_raw()["generic"]})


def _provider(row: Mapping[str, Any]) -> Provider:
    common: Mapping[str, Any] = row["rule"]
    rules = [rule for changed in row.get("rules", [{}]) for rule in _rules(common, changed)]
    fields = {key: value for key, value in row.items() if key not in ("rule", "rules")}
    return msgspec.convert({**fields, "rules": rules}, Provider)


def _rules(common: Mapping[str, Any], changed: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """One, or all those of the row that it is like."""
    if "like" not in changed:
        return [{key: value for key, value in {**common, **changed}.items() if value != ""}]
    (row,) = (row for row in _raw()["provider"] if row["name"] == changed["like"])
    prefixes = [pattern.rstrip("*") for pattern in changed["models"]]
    rules = [
        rule
        for each in row.get("rules", [{}])
        # What one of the vendor's own layers cannot do is no limit of another's.
        if not (each.get("kind") == "none" and "dialects" in each)
        for rule in _rules(row["rule"], each)
    ]
    return [
        {**rule, "models": [prefix + name for prefix in prefixes for name in rule.get("models", ["*"])], **_own(common)}
        for rule in rules
    ]


def _own(common: Mapping[str, Any]) -> dict[str, Any]:
    """What a row keeps of its own where it passes another's rules on."""
    return {key: value for key, value in common.items() if key in ("cache_key_field", "notes", "checked")}
