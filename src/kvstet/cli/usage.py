"""``kvstet usage``: what requests took and cost, of the account that gateway, agent and server keep."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from kvstet.cli.cache import seconds_of
from kvstet.cli.console import FILE_COLUMNS
from kvstet.cli.listing import count_text, stdout_console
from kvstet.errors import InvalidRequest
from kvstet.money.bill import Total
from kvstet.money.entry import LedgerEntry, Summary, by_day, by_session, summary_of
from kvstet.money.ledger import Ledger, default_path
from kvstet.types import Usage

MAX_ROWS = 30
"""Of a table; the latest."""

STANDARD_OUTPUT = Path("-")

_COLUMNS = ("requests", "input", "read", "written", "fresh", "output", "hit", "cost", "uncached", "saved")


def since_time(text: str) -> float:
    """12h, 7d (ago), 2026-11-01 or 2026-11-01T12:00 (this machine's clock) -> seconds since 1970."""
    if re.fullmatch(r"[\d.]+[a-z]", text.strip()):
        return time.time() - seconds_of(text)
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter(f"{text!r} is neither an age like 12h or 7d nor a date like 2026-11-01.") from None


def usage(
    session: Annotated[
        str | None, typer.Option(help="Only the session of this name, or whose name begins like this; by request.")
    ] = None,
    since: Annotated[
        float | None, typer.Option(parser=since_time, metavar="WHEN", help="12h, 7d, 2026-11-01: only from then on.")
    ] = None,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all requests as CSV instead; -: to the output.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="The same as JSON."),
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(help="Where the account is kept.", envvar="KVSTET_LEDGER", show_default=False)
    ] = None,
) -> None:
    """Show what requests took and cost: today, by session, by day. Costs are in US dollars; ? is not known."""
    with Ledger(ledger or default_path()) as account:
        entries = account.entries(since=since, session=session)
        for file, text in ((csv_file, csv_text), (json_file, json_text)):
            if file is not None:
                _export(file, text(entries))
        if csv_file is not None or json_file is not None:
            return
        console = stdout_console()
        if not entries:
            _say_nothing_is_there(console, account, is_narrowed=since is not None or session is not None)
        elif session is not None:
            _show_requests(console, entries)
        else:
            _show(console, entries)


def csv_text(entries: Sequence[LedgerEntry]) -> str:
    """One line per request under one of names; what is not known is empty."""
    rows = [flat(entry) for entry in entries]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(_names()), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def json_text(entries: Sequence[LedgerEntry]) -> str:
    """One list; what is not known is null."""
    return json.dumps([flat(entry) for entry in entries], indent=1, ensure_ascii=False) + "\n"


def flat(entry: LedgerEntry) -> dict[str, Any]:
    """A request as a row of an export; its time in UTC."""
    row = asdict(entry)
    tokens = row.pop("usage")
    at = datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds")
    return {**row, "time": at, **tokens, "num_fresh_tokens": entry.usage.num_fresh_tokens}


def _names() -> Sequence[str]:
    nothing = LedgerEntry(time=0.0, session="", provider="", model="", source="server", usage=Usage())
    return list(flat(nothing))


def _export(file: Path, text: str) -> None:
    if file == STANDARD_OUTPUT:
        typer.echo(text, nl=False)
        return
    try:
        file.write_text(text, "utf-8")
    except OSError as error:
        raise InvalidRequest(f"{file} cannot be written: {error.strerror or error}.") from error


def _say_nothing_is_there(console: Console, account: Ledger, *, is_narrowed: bool) -> None:
    if is_narrowed:
        console.print("No request fits; `kvstet usage` without options shows all.")
        return
    console.print(
        f"No request is in the account yet ({escape(str(account.path))}). `kvstet gateway` and `kvstet agent` write"
        " into it.",
        soft_wrap=True,
    )


def _show(console: Console, entries: Sequence[LedgerEntry]) -> None:
    midnight = datetime.now().replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    today = [entry for entry in entries if entry.time >= midnight]
    if today:
        _print(console, "Today", [summary_of("today", today)], "")
    _print(console, "By session", by_session(entries), "session")
    _print(console, "By day", by_day(entries), "day")


def _print(console: Console, title: str, rows: Sequence[Summary], noun: str) -> None:
    table = _table(title, "", _COLUMNS)
    for row in rows[-MAX_ROWS:]:
        table.add_row(shown(row.name), f"{row.num_requests:,}", *_cells(row))
    _print_whole(console, table)
    if len(rows) > MAX_ROWS:
        console.print(f"[dim]and {count_text(len(rows) - MAX_ROWS, noun)} before[/dim]")


def _show_requests(console: Console, entries: Sequence[LedgerEntry]) -> None:
    models = ", ".join(dict.fromkeys(shown(entry.model) for entry in entries))
    table = _table(f"Session {shown(entries[-1].session)}: {models}", "time", _COLUMNS[1:])
    for entry in entries[-MAX_ROWS:]:
        at = time.strftime("%m-%d %H:%M", time.localtime(entry.time))
        table.add_row(at, *_cells(summary_of("", [entry])))
    table.add_section()
    table.add_row("all", *_cells(summary_of("all", list(entries))))
    _print_whole(console, table)
    if len(entries) > MAX_ROWS:
        console.print(f"[dim]and {count_text(len(entries) - MAX_ROWS, 'request')} before[/dim]")
    for entry in entries[-MAX_ROWS:]:
        if entry.verdict:
            at = time.strftime("%m-%d %H:%M", time.localtime(entry.time))
            console.print(f"  [dim]{at}[/dim] {shown(entry.verdict)}", soft_wrap=True)


def _table(title: str, name: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column(name, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _print_whole(console: Console, table: Table) -> None:
    """A terminal that is too narrow breaks lines; rich would leave digits out."""
    whole = Measurement.get(console, console.options.update(max_width=FILE_COLUMNS), table).maximum
    console.width = max(console.width, whole)
    console.print(table)


def _cells(row: Summary) -> list[str]:
    tokens = (
        row.num_input_tokens,
        row.num_cache_read_tokens,
        row.num_cache_write_tokens,
        row.num_fresh_tokens,
        row.num_output_tokens,
    )
    hit = "?" if row.read_share is None else f"{row.read_share:.1%}"
    money = (row.cost, row.cost_without_cache, row.saved)
    return [
        *(_sum_text(each, "{:,.0f}", row) for each in tokens),
        hit,
        *(_sum_text(each, "${:,.3f}", row) for each in money),
    ]


def _sum_text(total: Total, form: str, row: Summary) -> str:
    """1,234; with what is not in it: 1,234 +2?; of which nothing is known: ?"""
    if total.num_unknown == row.num_requests:
        return "?"
    return form.format(total.known) + (f" +{total.num_unknown}?" if total.num_unknown else "")


def shown(text: str) -> str:
    """A name from outside: no control characters, no markup."""
    return escape("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text))
