"""``kvstet trace``: look at recorded sessions, take out of them what others should not see, and import clients' own."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvstet.api.anthropic.signatures import carrying_signature_of, thinking_in
from kvstet.api.responses.sealed import seal, unseal
from kvstet.cli.console import stderr_console
from kvstet.cli.listing import count_text, stdout_console
from kvstet.errors import InvalidRequest
from kvstet.traces.format import VERSION, Header, Line
from kvstet.traces.importing.importers import KINDS, import_file
from kvstet.traces.keys import without_keys
from kvstet.traces.placeholders import KEY_BYTES
from kvstet.traces.reading import exchanges, read_lines
from kvstet.traces.redaction import Redaction, Wrapping
from kvstet.traces.summary import Group, Summary
from kvstet.traces.writing import PRIVATE, write_trace

app = typer.Typer(name="trace", help="Show, redact and import recorded sessions.", no_args_is_help=True)

errors = stderr_console()

WRAPPINGS: tuple[Wrapping, ...] = (
    (unseal, seal),
    (lambda signature: thinking_in("", signature) or None, carrying_signature_of),
)
"""Reasoning that kvstet gave out in what clients send back unread."""

Trace = Annotated[Path, typer.Argument(metavar="FILE", help="A trace, also packed (.xz); -: standard input.")]
Out = Annotated[Path | None, typer.Option("-o", "--output", help="File to write, .xz packs it. None: standard output.")]


@app.command()
def show(file: Trace) -> None:
    """Tell what is in a trace: clients, models, requests, replies, tokens and times."""
    console, passed_over = stdout_console(), Counter[str]()
    headers: list[Header] = []
    summary = Summary()
    for exchange in exchanges(_noted(read_lines(file, passed_over), headers)):
        summary.add(exchange)
    show_summary(console, headers, summary)
    for reason, count in passed_over.items():
        console.print(f"[dim]{count_text(count, 'line')} passed over: {reason}[/dim]")


@app.command()
def redact(
    file: Trace,
    output: Out = None,
    text: Annotated[bool, typer.Option("--text", help="Texts too: placeholders of the same lengths.")] = False,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="Same placeholders in several files; made if it is not there.")
    ] = None,
) -> None:
    """Take keys out of a trace, and with --text all that was said. What is counted and explained stays the same."""
    if key_file is not None and not text:
        raise typer.BadParameter("Only placeholders have a key: give --text too.", param_hint="--key-file")
    lines = _with_header(read_lines(file))
    if text:
        redaction = Redaction(key_of(key_file), WRAPPINGS)
        num_lines = write_trace(map(redaction.line, lines), output)
    else:
        num_lines = write_trace(map(without_keys, lines), output)
    _tell_written(num_lines, output)


@app.command("import")
def import_sessions(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Session files of clients, or their folders.")],
    kind: Annotated[
        str | None, typer.Option("--from", help=f"Whose they are: {', '.join(KINDS)}. None: what they look like.")
    ] = None,
    session: Annotated[str | None, typer.Option("--session", help="Which one, where a file holds several.")] = None,
    output: Out = None,
) -> None:
    """Make a trace of sessions that clients have kept themselves. Several follow each other in it."""
    passed_over: Counter[str] = Counter()
    _tell_written(write_trace(_imported(files, kind, session, passed_over), output), output)
    for reason, count in passed_over.items():
        errors.print(f"[dim]{count} passed over: {escape(reason)}[/dim]", highlight=False)


def show_summary(console: Console, headers: Iterable[Header], summary: Summary) -> None:
    """Print it."""
    for header in headers:
        when = (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(header.wall)) if header.wall is not None else "unknown time"
        )
        what = "keys and text" if header.redacted == "text" else "keys"
        console.print(escape(f"Written by {header.by or 'an unknown maker'}, {when}; without {what}."))
    console.print(f"{count_text(summary.num_requests, 'request')} in {summary.num_seconds:,.1f} s")
    if summary.groups:
        console.print(_table(summary.groups.values()))


def key_of(file: Path | None) -> bytes:
    """A new one; or that of a file, which is made where it is not there. InvalidRequest: it cannot be."""
    if file is None:
        return secrets.token_bytes(KEY_BYTES)
    try:
        if not file.exists():
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as new:
                new.write(secrets.token_bytes(KEY_BYTES))
        key = file.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"The key file {file} cannot be used: {error.strerror}.") from error
    if len(key) < KEY_BYTES:
        raise InvalidRequest(f"The key file {file} has fewer than {KEY_BYTES} bytes: somebody could guess it.")
    return key


def _table(groups: Iterable[Group]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("client", "dialect", "model"):
        table.add_column(name)
    for name in ("requests", "replies", "calls", "errors", "broken off", "input", "cached", "output", "first token"):
        table.add_column(name, justify="right")
    for group in groups:
        numbers = (
            *(group.num_requests, group.num_replies, group.num_calls, group.num_refused, group.num_broken_off),
            *(group.num_input_tokens, group.num_cached_tokens, group.num_output_tokens),
        )
        first = f"{statistics.median(group.first_seconds):.2f} s" if group.first_seconds else ""
        names = (escape(group.client), escape(group.dialect), escape(group.model))
        table.add_row(*names, *(f"{number:,}" for number in numbers), first)
    return table


def _noted(lines: Iterable[Line], headers: list[Header]) -> Iterator[Line]:
    for line in lines:
        if isinstance(line, Header):
            headers.append(line)
        yield line


def _with_header(lines: Iterable[Line]) -> Iterator[Line]:
    """Traces of others have none; what was taken out is told in it."""
    for number, line in enumerate(lines):
        if number == 0 and not isinstance(line, Header):
            yield Header(kvstet_trace=VERSION)
        yield line


def _imported(
    files: Iterable[Path], kind: str | None, session: str | None, passed_over: Counter[str]
) -> Iterator[Line]:
    for file in files:
        imported = import_file(file, kind, session)
        yield from imported
        passed_over.update(imported.passed_over)


def _tell_written(num_lines: int, output: Path | None) -> None:
    if output is not None:
        errors.print(f"[dim]{count_text(num_lines, 'line')} in {escape(str(output))}[/dim]", highlight=False)
