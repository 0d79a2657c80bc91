"""The demo's table: what each request cost with the cache and without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvstet.demo.replay import Answer, Pair
from kvstet.demo.session import RecordedRequest

BAR_WIDTH = 8
"""With it the table fits a terminal of 80 columns."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all requests."""

    num_prompt_tokens: int
    num_computed_tokens: int
    warm_seconds: float
    cold_seconds: float

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Totals:
        return cls(
            sum(pair.warm.num_prompt_tokens for pair in pairs),
            sum(pair.warm.num_computed_tokens for pair in pairs),
            sum(pair.warm.prompt_seconds for pair in pairs),
            sum(pair.cold.prompt_seconds for pair in pairs),
        )


def show(console: Console, pairs: Sequence[Pair]) -> None:
    """The table, and what was saved in total."""
    totals = Totals.of(pairs)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("request", no_wrap=True)
    for name in ("prompt", "reused", "computed", "seconds", "cold"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for pair in pairs:
        table.add_row(pair.request.label, *cells(Totals.of([pair])), bar(pair.warm))
    table.add_section()
    table.add_row("all", *cells(totals), style="bold")
    console.print(table)
    console.print(Panel(f"{summary(totals)}\n{agreement(pairs)}", border_style="green", expand=False))


def cells(totals: Totals) -> tuple[str, ...]:
    """The numbers of one row."""
    prompt, computed = totals.num_prompt_tokens, totals.num_computed_tokens
    seconds = f"{totals.warm_seconds:.2f}", f"{totals.cold_seconds:.2f}"
    return f"{prompt:,}", f"{prompt - computed:,}", f"{computed:,}", *seconds


def bar(answer: Answer) -> Text:
    """Reused part of the prompt in green, computed in yellow."""
    num_computed = max(1, round(BAR_WIDTH * answer.num_computed_tokens / answer.num_prompt_tokens))
    return Text.assemble(("━" * (BAR_WIDTH - num_computed), "green"), ("━" * num_computed, "yellow"))


def summary(totals: Totals) -> str:
    """What was saved."""
    prompt, computed = totals.num_prompt_tokens, totals.num_computed_tokens
    warm, cold = totals.warm_seconds, totals.cold_seconds
    return (
        f"[bold]{computed:,} of {prompt:,} prompt tokens computed ({1 - computed / prompt:.0%} saved)[/bold]; "
        f"{warm:.1f} s instead of {cold:.1f} s until the first token ({cold / warm:.1f}x as fast)"
    )


def agreement(pairs: Sequence[Pair]) -> str:
    """Whether greedy replies agree, and by how much log-probabilities differ."""
    num_same = sum(pair.agrees for pair in pairs)
    largest = max(pair.drift for pair in pairs)
    return (
        f"greedy replies agree with a cold run in {num_same} of {len(pairs)} requests; "
        f"largest difference of a log-probability {largest:.3f}"
    )


def live_line(request: RecordedRequest, answer: Answer) -> str:
    """One line while the session is replayed: what was computed, and why."""
    share = f"{answer.num_computed_tokens:>5,} of {answer.num_prompt_tokens:>5,}"
    reason = answer.verdict.partition(": ")[2] or answer.verdict
    return f"  {request.label:<26.26} {share}  [dim]{reason}[/dim]"
