"""Write the tables of providers into docs/providers.md, from the data: ``provider_table.py [FILE]``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvstet.providers.provider import CacheRule, Provider, provider_at, providers

FILE = Path(__file__).parent.parent / "docs/providers.md"
BEGIN, END = "<!-- These tables are written by scripts/provider_table.py. -->\n", "<!-- End of the tables. -->\n"

PROVIDERS_HEAD = ("provider", "key in", "dialects", "the cache is reported as", "source read")
RULES_HEAD = ("provider, models", "how", "what to send", "from, in steps of", "kept", "read / write")

_MARKS = {"stated": "", "quoted": " `~`", "unsure": " `?`"}

_UNSAID = "not told"


def tables() -> str:
    """As Markdown: who there is, what is to be known besides, and the rules."""
    everybody = (*providers(), provider_at("http://another-server"))
    notes = dict.fromkeys(
        f"- **{each.title}**: {rule.notes}" for each in everybody for rule in each.rules if rule.notes
    )
    return "\n".join(
        (
            _table(PROVIDERS_HEAD, map(_introduced, everybody)),
            *notes,
            "",
            _table(RULES_HEAD, (row for each in everybody for row in _rules(each))),
        )
    )


def with_table(document: str) -> str:
    """The document with the tables as they are now."""
    before, _, rest = document.partition(BEGIN)
    return before + BEGIN + "\n" + tables() + "\n" + END + rest.partition(END)[2]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ("---",) * len(head), *rows))


def _introduced(provider: Provider) -> tuple[str, ...]:
    source = provider.rules[-1].source
    title = f"[{provider.title}]({source})" if source.startswith("http") else provider.title
    key = f"`{provider.key.header}`, `{provider.key.environment}`" if provider.key else "none"
    told = [f"`{name}`" for name in (provider.reports.read, provider.reports.write) if name]
    reports = "; ".join([*told, provider.reports.note] if provider.reports.note else told)
    return f"{title} (`{provider.name}`)", key, ", ".join(provider.dialects), reports, provider.rules[-1].checked


def _rules(provider: Provider) -> Iterator[tuple[str, ...]]:
    own = [rule for rule in provider.rules if rule.source == provider.rules[-1].source]
    if len(own) < len(provider.rules):
        yield (
            f"{provider.title}: other vendors' models",
            "as there",
            f"`{own[-1].cache_key_field}`, and as there",
            *[""] * 3,
        )
    for rule in own:
        yield f"{provider.title}: {_models(rule)}", *_cells(rule)
        if rule.unmarked is not None:
            yield f"{provider.title}: without marks", *_cells(rule.unmarked)


def _models(rule: CacheRule) -> str:
    models = ", ".join(f"`{pattern}`" for pattern in rule.models) or "all others"
    return models + (f"; {', '.join(rule.dialects)} only" if rule.dialects else "")


def _cells(rule: CacheRule) -> tuple[str, ...]:
    if rule.kind == "none":
        return _kind(rule), "", "", "", ""
    return _kind(rule), _knobs(rule), _least(rule), _lifetimes(rule), _prices(rule)


def _kind(rule: CacheRule) -> str:
    match rule.kind:
        case "breakpoints":
            reach = f", {rule.lookback_blocks} blocks back" if rule.lookback_blocks else ""
            count = f"at most {rule.max_breakpoints} marks{reach}"
            kind = f"marks, and one of its own; {count}" if rule.is_automatic else f"marks; {count}"
        case "prefix":
            kind = "any prefix" + (", with a key only" if rule.needs_key else "")
        case "units":
            kind = "whole requests"
        case "none":
            kind = "nothing is cached"
    return kind + _MARKS[rule.certainty_of("kind")]


def _knobs(rule: CacheRule) -> str:
    names = (rule.breakpoint_style, rule.cache_key_field, rule.affinity_header, rule.ttl_field, rule.mode_field)
    return ", ".join(f"`{name}`" for name in names if name) or "nothing"


def _least(rule: CacheRule) -> str:
    least = _UNSAID if rule.min_tokens is None else f"{rule.min_tokens:,}{_MARKS[rule.certainty_of('min_tokens')]}"
    return f"{least}, {rule.granularity_tokens}{_MARKS[rule.certainty_of('granularity_tokens')]}"


def _lifetimes(rule: CacheRule) -> str:
    names = ", ".join(lifetime.name for lifetime in rule.lifetimes) or _UNSAID
    return names + (", reads refresh" if rule.reads_refresh else "") + _MARKS[rule.certainty_of("lifetimes")]


def _prices(rule: CacheRule) -> str:
    read = _UNSAID if rule.read_factor is None else f"{rule.read_factor:g}{_MARKS[rule.certainty_of('read_factor')]}"
    writes = ", ".join(dict.fromkeys(f"{lifetime.write_factor:g}" for lifetime in rule.lifetimes)) or "1"
    return f"{read} / {writes}"


def main() -> None:
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    file.write_text(with_table(file.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
