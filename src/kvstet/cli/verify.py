"""``kvstet verify``: whether reused state gives a cold run's predictions, on the user's own model and sessions."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from importlib.resources import files
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvstet.cli.console import stderr_console
from kvstet.cli.drift_report import drift_json, show_drift
from kvstet.cli.drift_report import plot as draw
from kvstet.cli.drift_verification import DriftJob, DriftVerified, run_drift
from kvstet.cli.options import option
from kvstet.cli.selection import absolute
from kvstet.cli.serve import CACHE_FOLDER_VARIABLE, DEFAULT_CACHE_FOLDER, MODEL
from kvstet.cli.traces import Trace, read_trace
from kvstet.cli.verification import Doing, Job, Message, Row, Verdict, Verified, run
from kvstet.config import FlashAttention, KvType, ModelOptions
from kvstet.engine.exactness import Comparison, NoiseFloor
from kvstet.engine.process import Broken, load_llama
from kvstet.errors import EngineCrashed, InvalidRequest

VERIFY = "What to verify"

DEFAULT_TOKENS = 640
"""More than small sliding windows hold (512), and less than a minute's work for a small model on two cores."""

DEFAULT_EDITS = 20

DEMO_SESSION = Path(str(files("kvstet.demo") / "session.jsonl"))
"""Measured on where the user has no trace."""

Proven = Literal["exact", "approximate"]

T = TypeVar("T")

PARALLEL = 2
"""Sequences for requests; the kinds of reuse need two."""

STYLES: dict[Verdict, str] = {
    "identical": "green",
    "within noise": "green",
    "outside": "bold red",
    "cannot tell": "yellow",
    "not possible": "dim",
    "failed": "bold red",
}

console = Console()
errors = stderr_console()


def verify(
    model: Annotated[Path, typer.Argument(help="A GGUF file, with or without a tokenizer.")],
    *,
    trace: Annotated[
        Path | None, option("--trace", panel=VERIFY, text="Recorded chat requests to replay, JSON lines.")
    ] = None,
    tokens: Annotated[
        int, option("--tokens", panel=VERIFY, text="Length of the synthetic runs.", at_least=16)
    ] = DEFAULT_TOKENS,
    fidelity: Annotated[
        Proven,
        option(
            "--fidelity", panel=VERIFY, text="exact: is reused state right? approximate: how far moved state drifts."
        ),
    ] = "exact",
    edits: Annotated[
        int, option("--edits", panel=VERIFY, text="Edits of the sessions to measure drift on.", at_least=1)
    ] = DEFAULT_EDITS,
    plot: Annotated[
        Path | None, option("--plot", panel=VERIFY, text="Draw drift against repaired tokens, as SVG or PNG.")
    ] = None,
    cache_dir: Annotated[
        Path,
        typer.Option(help="Where the server finds what passed.", rich_help_panel=VERIFY, envvar=CACHE_FOLDER_VARIABLE),
    ] = DEFAULT_CACHE_FOLDER,
    json: Annotated[bool, typer.Option("--json", rich_help_panel=VERIFY, help="For programs.")] = False,
    ctx_size: Annotated[
        int, option("-c", "--ctx-size", panel=MODEL, text="Tokens of the longest prompt; 0: the model's.", at_least=0)
    ] = 0,
    threads: Annotated[
        int | None, option("-t", "--threads", panel=MODEL, text="Threads; none: all cores.", at_least=1)
    ] = None,
    n_gpu_layers: Annotated[
        int, option("-ngl", "--n-gpu-layers", panel=MODEL, text="Layers in GPU memory; -1: all.", at_least=-1)
    ] = -1,
    flash_attn: Annotated[FlashAttention, option("-fa", "--flash-attn", panel=MODEL, text="Flash attention.")] = "auto",
    cache_type_k: Annotated[KvType, option("-ctk", "--cache-type-k", panel=MODEL, text="Type of K state.")] = "f16",
    cache_type_v: Annotated[KvType, option("-ctv", "--cache-type-v", panel=MODEL, text="Type of V state.")] = "f16",
    swa_full: Annotated[
        bool, option("--swa-full", panel=MODEL, text="Keep all state of layers with a sliding window.")
    ] = False,
    repack: Annotated[bool, option("--repack/--no-repack", panel=MODEL, text="Rearrange weights for the CPU.")] = True,
) -> None:
    """Prove on a model that reused state predicts what a cold run predicts. Exit status 1 where it does not.

    With --fidelity approximate: measure how far state drifts that was moved behind an edit, and note for the server
    what may be done.
    """
    options = ModelOptions(
        path=model,
        ctx_size=ctx_size or None,
        # A trace needs room for its prompts; without one, what the synthetic runs need will do.
        live_cells=None if trace else 3 * tokens,
        parallel=PARALLEL,
        threads=threads,
        n_gpu_layers=n_gpu_layers,
        flash_attn=flash_attn,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        swa_full=swa_full,
        repack=repack,
    )
    if fidelity == "approximate":
        measured = trace_of(trace or DEMO_SESSION)
        has_passed = measure(DriftJob(load_llama, options, edits, measured, absolute(cache_dir)), json=json, plot=plot)
    else:
        has_passed = prove(Job(load_llama, options, tokens, trace_of(trace)), json=json)
    raise typer.Exit(0 if has_passed else 1)


def prove(job: Job, *, json: bool) -> bool:
    """Whether reused state is right; shown in either form."""
    verified = followed(run, job, Verified)
    if json:
        typer.echo(msgspec.json.encode(as_json(verified)))
    else:
        show(console, verified)
    return verified.is_exact


def measure(job: DriftJob, *, json: bool, plot: Path | None) -> bool:
    """Whether every kind of edit may be approximated; shown in either form, and drawn."""
    verified = followed(run_drift, job, DriftVerified)
    if json:
        typer.echo(msgspec.json.encode(drift_json(verified)))
    else:
        show_drift(console, verified)
    if plot is not None and verified.refusal is None:
        draw(verified, plot)
    return verified.has_passed


def trace_of(path: Path | None) -> Trace:
    """The file's requests. BadParameter where it has none."""
    if path is None:
        return Trace((), ())
    try:
        return read_trace(path)
    except InvalidRequest as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error


# The other process


def followed(run: Callable[[Any, Connection], None], job: Job | DriftJob, result: type[T]) -> T:
    """`work` with a bar on the terminal."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        task = progress.add_task(f"loading {escape(job.model.path.name)}", total=None)

        def on_doing(doing: Doing) -> None:
            progress.update(task, description=escape(doing.what), completed=doing.num_done, total=doing.num_steps)

        return work(run, job, result, on_doing)


def work(
    run: Callable[[Any, Connection], None], job: Job | DriftJob, result: type[T], on_doing: Callable[[Doing], None]
) -> T:
    """Start a process that runs the job, follow it, and give what it found."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(job, theirs), daemon=True, name="kvstet-verify")
    process.start()
    theirs.close()
    what = "it loaded the model"
    try:
        while True:
            message: Message | T = ours.recv()
            if isinstance(message, result):
                return message
            match message:
                case Doing():
                    what = message.what
                    on_doing(message)
                case Broken(error):
                    raise error
                case _:
                    pass
    except EOFError:
        process.join()
        raise EngineCrashed(death_sentence(process.exitcode, what)) from None
    finally:
        process.kill()
        process.join()
        ours.close()


def death_sentence(code: int | None, what: str) -> str:
    """What is told of a process that died at work."""
    name = signal.Signals(-code).name if code is not None and code < 0 else f"exit status {code}"
    hint = " Try --no-repack." if name == "SIGILL" else ""
    return f"libllama aborted while {what} ({name}); its last words stand above.{hint}"


# What is shown


def show(console: Console, verified: Verified) -> None:
    """The table, and one sentence on the whole."""
    title = f"[bold]{escape(verified.model)}[/bold] ({escape(verified.description)}), {verified.memory_kind}"
    console.print(f"{title}; divergence from a cold run in nats", highlight=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("positions", "mean", "p99", "max", "same top"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    table.add_row("noise floor", *floor_cells(verified.floor), "cold runs in other batches")
    table.add_row("state of other tokens", *cells(verified.wrong), "what a test must not pass", end_section=True)
    for row in verified.rows:
        add_row(table, row)
    if verified.trace_rows:
        table.add_section()
    for row in verified.trace_rows:
        add_row(table, row)
    console.print(table, highlight=False)
    for reason, count in verified.skipped:
        console.print(f"left out {count}: {escape(reason)}", style="dim", highlight=False)
    console.print(conclusion(verified), highlight=False)


def add_row(table: Table, row: Row) -> None:
    """One row with its verdict."""
    note = f" [dim]({escape(row.note)})[/dim]" if row.note else ""
    style = STYLES[row.verdict]
    table.add_row(row.name, *cells(row.comparison), f"[{style}]{row.verdict}[/{style}]{note}")


def cells(comparison: Comparison | None) -> tuple[str, ...]:
    """The numbers of a row; nothing where there are none."""
    if comparison is None:
        return ("",) * 5
    numbers = (comparison.mean, comparison.p99, comparison.max)
    return f"{comparison.num_positions:,}", *map(number, numbers), f"{comparison.agreement:.1%}"


def floor_cells(floor: NoiseFloor) -> tuple[str, ...]:
    return f"{floor.num_positions:,}", *map(number, (floor.mean, floor.p99, floor.max)), ""


def number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def conclusion(verified: Verified) -> str:
    """What it all says, in a sentence."""
    rows = (*verified.rows, *verified.trace_rows)
    bad = [row.name for row in rows if row.verdict in ("outside", "failed")]
    if bad:
        return f"[bold red]Reuse changes what this model predicts: {', '.join(bad)}.[/bold red] Please report it."
    if not verified.is_exact:
        return "[yellow]Nothing was proven: even state of other tokens lies within this model's noise.[/yellow]"
    if all(row.verdict in ("identical", "not possible") for row in rows):
        return "[green]Reused state gives a cold run's predictions, to the last digit.[/green]"
    return "[green]Reused state gives a cold run's predictions, within the model's noise.[/green]"


def as_json(verified: Verified) -> dict[str, Any]:
    """For programs; a number that is not finite is null."""
    return {"is_exact": verified.is_exact, **msgspec.to_builtins(verified)}
