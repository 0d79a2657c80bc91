"""The demo's table: what each request cost with the cache and without."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kvstet.demo.replay import Answer, Pair
from kvstet.demo.session import RecordedRequest

BAR_WIDTH = 8
"""With it the table fits a terminal of 80 columns."""


def new_table(title: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("request", no_wrap=True)
    for name in ("prompt", "reused", "computed", "seconds", "cold"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    return table


def show(console: Console, pairs: Sequence[Pair]) -> None:
    """The table, and what was saved in total."""
    table = new_table("")
    for pair in pairs:
        warm, cold = pair.warm, pair.cold
        table.add_row(
            pair.request.label,
            f"{warm.num_prompt_tokens:,}",
            f"{warm.num_reused_tokens + warm.num_loaded_tokens:,}",
            f"{warm.num_computed_tokens:,}",
            f"{warm.prompt_seconds:.2f}",
            f"{cold.prompt_seconds:.2f}",
            bar(warm),
        )
    table.add_section()
    table.add_row("all", *totals(pairs), style="bold")
    console.print(table)
    console.print(Panel(summary(pairs), border_style="green", expand=False))


def totals(pairs: Sequence[Pair]) -> tuple[str, ...]:
    prompt = sum(pair.warm.num_prompt_tokens for pair in pairs)
    computed = sum(pair.warm.num_computed_tokens for pair in pairs)
    warm = sum(pair.warm.prompt_seconds for pair in pairs)
    cold = sum(pair.cold.prompt_seconds for pair in pairs)
    return f"{prompt:,}", f"{prompt - computed:,}", f"{computed:,}", f"{warm:.2f}", f"{cold:.2f}"


def bar(answer: Answer) -> Text:
    """Reused part of the prompt in green, computed in yellow."""
    num_computed = max(1, round(BAR_WIDTH * answer.num_computed_tokens / answer.num_prompt_tokens))
    return Text.assemble(("━" * (BAR_WIDTH - num_computed), "green"), ("━" * num_computed, "yellow"))


def summary(pairs: Sequence[Pair]) -> str:
    """What was saved, and whether the replies are the same."""
    prompt = sum(pair.warm.num_prompt_tokens for pair in pairs)
    computed = sum(pair.warm.num_computed_tokens for pair in pairs)
    warm = sum(pair.warm.prompt_seconds for pair in pairs)
    cold = sum(pair.cold.prompt_seconds for pair in pairs)
    return (
        f"[bold]{computed:,} of {prompt:,} prompt tokens computed ({1 - computed / prompt:.0%} saved)[/bold]; "
        f"{warm:.1f} s instead of {cold:.1f} s until the first token ({cold / warm:.1f}x as fast)\n{agreement(pairs)}"
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
