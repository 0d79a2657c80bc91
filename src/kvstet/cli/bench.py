"""``kvstet bench``: kvstet beside the servers that are found on this machine, and a report of it."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvstet.bench.benchmark import FULL, QUICK, Amount, Benchmark, Order
from kvstet.bench.report import write_report
from kvstet.bench.results import Results
from kvstet.bench.runner import News
from kvstet.bench.software import found_peers
from kvstet.bench.suite import SUITE, chosen
from kvstet.bench.table import show
from kvstet.cli.console import stderr_console
from kvstet.demo.model import demo_model_path
from kvstet.errors import InvalidRequest

console = Console()
errors = stderr_console()

INTERRUPTED = 130


def bench(
    model: Annotated[Path | None, typer.Argument(help="A GGUF file; none: the bundled SmolLM2-135M.")] = None,
    *,
    quick: Annotated[bool, typer.Option("--quick", help="One pair of each scenario, in less than 6 minutes.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only these scenarios; repeatable.")] = None,
    shows_list: Annotated[bool, typer.Option("--list", help="Show the scenarios, and end.")] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", help="auto: servers found here; none; or URL[#MODEL] of a running one. Repeatable."),
    ] = None,
    pairs: Annotated[int | None, typer.Option("--pairs", help="Repetitions of each scenario.", min=1)] = None,
    seed: Annotated[int, typer.Option("--seed", help="Chooses the texts.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = Path("kvstet-bench.html"),
    json: Annotated[Path, typer.Option("--json", help="The numbers.")] = Path("kvstet-bench.json"),
    ctx: Annotated[
        int | None, typer.Option("-c", "--ctx", help="Tokens of live state, alike for all.", min=512)
    ] = None,
) -> None:
    """Measure kvstet and its peers on the same model and the same requests, in turn, and write a report."""
    if shows_list:
        show_suite()
        return
    path = model or demo_model_path()
    if not path.is_file():
        raise InvalidRequest(f"There is no model file {path}.")
    wanted = peer or ["auto"]
    order = Order(
        model=path.absolute(),
        peers=tuple(found_peers()) if "auto" in wanted else (),
        urls=tuple(each for each in wanted if each not in ("auto", "none")),
        suite=chosen(name for each in only or [] for name in each.split(",")),
        amount=amount_of(QUICK if quick else FULL, pairs, only or ()),
        seed=seed,
        command=shlex.join(["kvstet", *sys.argv[1:]]),
        context_length=ctx,
    )
    if not order.peers and not order.urls and "none" not in wanted:
        errors.print("No peer was found on this machine; kvstet is measured alone.", style="yellow")
    run(order, output, json)


def amount_of(amount: Amount, pairs: int | None, only: Sequence[str] = ()) -> Amount:
    """Whoever wants some scenarios only does not want the drift either."""
    effort = replace(amount.effort, num_pairs=pairs or amount.effort.num_pairs)
    return replace(amount, effort=effort, num_drift_edits=0 if only else amount.num_drift_edits)


def show_suite() -> None:
    table = Table.grid(padding=(0, 2))
    for scenario in SUITE:
        table.add_row(scenario.name, scenario.about)
    console.print(table)


def run(order: Order, output: Path, json: Path) -> None:
    """Whatever stops it, what was found until then is written."""
    with progress() as (say, watch):
        benchmark = Benchmark(order, say, watch)
        try:
            asyncio.run(ended_by_signal(benchmark))
            status = 0
        except (KeyboardInterrupt, asyncio.CancelledError):
            errors.print("Interrupted.", style="yellow")
            status = INTERRUPTED
    if benchmark.results is not None:
        tell(benchmark.results, output, json)
    if status:
        raise typer.Exit(status)


async def ended_by_signal(benchmark: Benchmark) -> None:
    """SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await benchmark.run()


@contextmanager
def progress() -> Generator[tuple[Callable[[str], None], Callable[[News], None]]]:
    """What is told meanwhile: a bar on a terminal, lines elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def say(sentence: str) -> None:
            bar.console.print(escape(sentence), highlight=False)

        def watch(news: News) -> None:
            doing = f"{news.scenario}, {news.server}, pair {news.repetition + 1}"
            bar.update(task, description=escape(doing), completed=news.num_done, total=news.num_runs)
            if not errors.is_terminal:
                say(f"{news.num_done + 1}/{news.num_runs}: {doing}")

        yield say, watch


def tell(results: Results, output: Path, json: Path) -> None:
    """Write both files, and the short of it to the terminal."""
    json.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))
    write_report(results, output)
    show(console, results)
    console.print(f"The report: {output}\nThe numbers: {json}", highlight=False, soft_wrap=True)
