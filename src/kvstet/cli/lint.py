"""``kvstet lint``: what in a prompt's head will vary, and what did in a recorded session."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvstet.cli.listing import count_text, stdout_console
from kvstet.context.arranging.lens import Body, DialectName, lens_of
from kvstet.context.static import Finding, Guard, Variation, lint, system_of
from kvstet.errors import InvalidRequest
from kvstet.traces.format import Request
from kvstet.traces.reading import Exchange, exchanges, line_of, lines_in, opened


@dataclass(frozen=True, slots=True)
class Sent:
    """One request of a recording."""

    number: int
    """As the trace counts them, or else the line."""
    dialect: DialectName
    body: Body


@dataclass(frozen=True, slots=True)
class Report:
    """All that was found in a file."""

    findings: tuple[Finding, ...]
    variations: tuple[Variation, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not self.findings and not self.variations


def lint_file(
    file: Annotated[Path, typer.Argument(help="A system prompt, or recorded requests (JSON lines, also as .xz).")],
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Say what in a system prompt will vary and break the cache; of a recorded session also what did, between which
    calls. Exit status 1 where there is anything."""
    with opened(file) as content:
        report = report_of(content.read())
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(_fields(report))).decode())
    else:
        show(stdout_console(), report)
    if not report.is_clean:
        raise typer.Exit(1)


def report_of(data: bytes) -> Report:
    """Of a file's bytes. InvalidRequest: they are no text."""
    requests = list(sent_requests(data))
    if requests:
        return _of_requests(requests)
    try:
        return Report(tuple(lint(data.decode())))
    except UnicodeDecodeError as error:
        raise InvalidRequest("This is neither a text nor a recording of requests.") from error


def sent_requests(data: bytes) -> Iterator[Sent]:
    """Those of a trace that make a prompt; none where it is no trace."""
    whole = line_of(data, 1)
    found = [Exchange(whole)] if isinstance(whole, Request) else exchanges(lines_in(data.splitlines()))
    for exchange in found:
        try:
            body = exchange.body
        except InvalidRequest:
            continue
        if exchange.dialect is not None:
            yield Sent(exchange.number, exchange.dialect.name, body)


def show(console: Console, report: Report) -> None:
    """Print it."""
    if report.is_clean:
        console.print("Nothing in it will vary.")
    if report.findings:
        console.print("[bold]What will vary[/bold]")
        console.print(_table((_place(each), each.kind, each.quote, each.advice) for each in report.findings))
    if report.variations:
        console.print("[bold]What varied[/bold]")
        console.print(_table(_row(each) for each in report.variations))
    num_found = len(report.findings) + len(report.variations)
    if num_found:
        console.print(f"[dim]{count_text(num_found, 'finding')}[/dim]")


def _of_requests(requests: list[Sent]) -> Report:
    guard = Guard()
    findings: dict[tuple[object, ...], Finding] = {}
    variations: list[Variation] = []
    for sent in requests:
        lens = lens_of(sent.body, sent.dialect)
        for finding in lint(system_of(lens), lens.tools):
            findings.setdefault((finding.kind, finding.line, finding.tool), finding)
        variations += guard.check(sent.body, sent.dialect, call=sent.number)
    return Report(tuple(findings.values()), tuple(variations))


def _table(rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _place(finding: Finding) -> str:
    line = f"line {finding.line}" if finding.line else ""
    return f"tool {finding.tool} {line}".rstrip() if finding.tool else line


def _row(variation: Variation) -> tuple[str, ...]:
    place = f"tool {variation.tool}" if variation.tool else f"line {variation.line}" if variation.line else ""
    lines = "\n".join(
        f"{sign} {text}" for sign, text in (("-", variation.before), ("+", variation.after)) if text is not None
    )
    return f"calls {variation.calls[0]}-{variation.calls[1]}", place, variation.what or variation.kind, lines


def _fields(report: Report) -> dict[str, object]:
    findings = [{**dataclasses.asdict(each), "advice": each.advice} for each in report.findings]
    return {"findings": findings, "variations": [dataclasses.asdict(each) for each in report.variations]}
