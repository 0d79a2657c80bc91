"""How replays are told: a line for each request as it comes back, totals, and the servers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.markup import escape
from rich.table import Table

from kvstet.cli.listing import count_text
from kvstet.replay.foretelling import CACHE_WRITES, DOLLARS, DOLLARS_BEST, DOLLARS_UNCACHED
from kvstet.replay.playing import NUM_NOT_FORCED, NUM_TOO_LONG
from kvstet.replay.results import Asked, Run

_LABEL_COLUMNS = 20
_NUMBERS = ("prompt", "reused", "loaded", "shifted", "computed", "bound")

HEAD = f"  {'request':<{_LABEL_COLUMNS}}" + "".join(f"{name:>9}" for name in _NUMBERS) + f"{'first':>9}"


def row(asked: Asked) -> Iterator[str]:
    """One request, with its verdict below, as markup."""
    label = escape(f"{asked.label:<{_LABEL_COLUMNS}.{_LABEL_COLUMNS}}")
    if asked.error is not None:
        yield f"  {label} [red]{escape(asked.error)}[/red]"
        return
    first = f"{asked.first_token_seconds:.2f} s" if asked.first_token_seconds is not None else _dollars(asked.dollars)
    yield f"  {label}{_cells(_parts(asked))}{first:>9}"
    if asked.verdict:
        yield f"    [dim]{escape(asked.verdict)}[/dim]"


def totals(run: Run) -> Iterator[str]:
    """The sums of a run, and what there is to say of it."""
    answered = [asked for asked in run.asked if asked.error is None]
    sums = [_sum([_parts(asked)[column] for asked in answered]) for column in range(len(_NUMBERS))]
    seconds = _sum([asked.first_token_seconds for asked in answered])
    first = f"{seconds:.1f} s" if seconds is not None else _dollars(run.values.get(DOLLARS))
    yield f"  [bold]{f'all {len(answered)}':<{_LABEL_COLUMNS}}{_cells(sums)}{first:>9}[/bold]"
    yield from (f"  [yellow]{escape(note)}[/yellow]" for note in _notes(run))


def _notes(run: Run) -> Iterator[str]:
    if too_long := int(run.values.get(NUM_TOO_LONG, 0)):
        yield f"{count_text(too_long, 'request')} left out: longer than the server's context."
    if not_forced := int(run.values.get(NUM_NOT_FORCED, 0)):
        yield f"{count_text(not_forced, 'request')}: this model has no form for the reply, and said one token."
    others = sum(asked.error is not None for asked in run.asked) - too_long
    if others:
        yield f"{count_text(others, 'request')} failed."
    if run.failure is not None:
        yield run.failure


def comparison(runs: Sequence[Run]) -> Table:
    """A line for each run."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("against")
    has_times, has_dollars = any(map(_is_timed, runs)), any(DOLLARS in run.values for run in runs)
    names = ["answered", "prompt", "computed", "bound", "ratio", *(["first tokens"] if has_times else [])]
    for name in [*names, *(["written", "dollars", "uncached", "best cache"] if has_dollars else [])]:
        table.add_column(name, justify="right", no_wrap=True)
    for run in runs:
        times = [_seconds(run)] if has_times else []
        table.add_row(*_summary(run), *times, *(_money(run) if has_dollars else ()))
    return table


def _is_timed(run: Run) -> bool:
    return any(asked.first_token_seconds is not None for asked in run.asked)


def _summary(run: Run) -> list[str]:
    answered = [asked for asked in run.asked if asked.error is None]
    prompt, computed, bound = (
        _sum([getattr(asked, f"num_{name}_tokens") for asked in answered]) for name in ("prompt", "computed", "bound")
    )
    ratio = f"{computed / bound:.3f}" if computed is not None and bound else "-"
    name = f"{run.server}, run {run.repetition + 1}" if run.repetition else run.server
    count = f"{len(answered)} of {len(run.asked)}"
    return [escape(name), count, *map(_cell, (prompt, computed, bound)), ratio]


def _seconds(run: Run) -> str:
    """Until the first tokens of all requests."""
    seconds = _sum([asked.first_token_seconds for asked in run.asked if asked.error is None])
    return f"{seconds:.2f} s" if seconds is not None and _is_timed(run) else "-"


def _money(run: Run) -> list[str]:
    written = run.values.get(CACHE_WRITES)
    money = [run.values.get(name) for name in (DOLLARS, DOLLARS_UNCACHED, DOLLARS_BEST)]
    return ["-" if written is None else f"{round(written):,}", *map(_dollars, money)]


def _parts(asked: Asked) -> list[int | None]:
    """In the order of the columns."""
    return [getattr(asked, f"num_{name}_tokens") for name in _NUMBERS]


def _cells(numbers: Sequence[float | None]) -> str:
    return "".join(f"{_cell(number):>9}" for number in numbers)


def _cell(number: float | None) -> str:
    return "-" if number is None else f"{round(number):,}"


def _dollars(amount: float | None) -> str:
    return "-" if amount is None else f"${amount:.4f}"


def _sum(numbers: Sequence[float | None]) -> float | None:
    """None where one of them is not known."""
    known = [number for number in numbers if number is not None]
    return sum(known) if len(known) == len(numbers) else None
