"""What `kvstet verify --fidelity approximate` shows: a table, and a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvstet.cli.drift_verification import CurvePoint, DriftVerified
from kvstet.engine.drift import Drift
from kvstet.engine.gate import KindVerdict
from kvstet.engine.probes import PROBE_KINDS, Answer, Probed
from kvstet.errors import InvalidRequest

HOW_TO_PLOT = "A picture needs matplotlib: pip install 'kvstet[plot]'."

PROBE_NAMES = {
    "deleted": "facts deleted are gone",
    "kept": "facts kept are known",
    "next call": "the next call is the same",
}


def show_drift(console: Console, verified: DriftVerified) -> None:
    """The table, the probes, and one sentence on the whole."""
    title = f"[bold]{escape(verified.model)}[/bold] ({escape(verified.description)}), {verified.memory_kind}"
    if verified.refusal is not None:
        console.print(title, highlight=False)
        console.print(f"[yellow]State of this model cannot be moved: {escape(verified.refusal)}.[/yellow]")
        return
    console.print(f"{title}; divergence from a cold run in nats, over what follows the edited prompt", highlight=False)
    console.print(_table(verified), highlight=False)
    for line in _probe_lines(verified.probes):
        console.print(line, highlight=False)
    for reason, count in verified.skipped:
        console.print(f"left out {count}: {escape(reason)}", style="dim", highlight=False)
    if verified.kept_in is not None:
        console.print(f"kept for the server in {escape(verified.kept_in)}", style="dim", highlight=False)
    console.print(_conclusion(verified), highlight=False)


def drift_json(verified: DriftVerified) -> dict[str, Any]:
    """For programs; a number that is not finite is null."""
    return {"has_passed": verified.has_passed, **msgspec.to_builtins(verified)}


def plot(verified: DriftVerified, file: Path) -> None:
    """Drift against repaired tokens, as SVG, PNG or whatever else the file's name ends in.

    InvalidRequest: without matplotlib, for a name that it has no format for, or a file that cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidRequest(HOW_TO_PLOT) from error
    figure: Any = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in (("all edits", verified.curve), *verified.curves.items()):
        style = {"linewidth": 2.5, "color": "black"} if name == "all edits" else {"linewidth": 1.2}
        axes.plot(*_line(points), marker="o", markersize=3, label=name, **style)
    for drift, label, color in ((verified.nothing, "edit ignored", "tab:red"), (verified.noise, "noise", "tab:gray")):
        if drift is not None:
            axes.axhline(drift.mean, linestyle="--", linewidth=1, color=color, label=label)
    axes.set_xscale("symlog", linthresh=64)
    axes.set_xticks([point.num_repaired_tokens for point in verified.curve])
    axes.set_xticklabels([str(point.num_repaired_tokens) for point in verified.curve])
    axes.set_yscale("log")
    axes.set_xlabel("repaired tokens behind the edit")
    axes.set_ylabel("mean KL to a cold run (nats)")
    axes.set_title(f"{verified.model}: drift of moved state")
    axes.legend(fontsize="small")
    try:
        figure.savefig(file)
    except (ValueError, OSError) as error:
        raise InvalidRequest(f"The picture {file} cannot be written: {error}") from error


def _line(points: tuple[CurvePoint, ...]) -> tuple[list[int], list[float]]:
    return [point.num_repaired_tokens for point in points], [point.drift.mean for point in points]


def _table(verified: DriftVerified) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for name in ("edits", "computed", "mean", "p99", "max", "same top", "NLL"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    num_edits = str(len(verified.edits))
    table.add_row("noise floor", "", "", *_cells(verified.noise), "cold runs in other batches")
    table.add_row(
        "edit ignored", num_edits, "", *_cells(verified.nothing), "what doing nothing costs", end_section=True
    )
    for point in verified.curve:
        num_whole = point.num_edits - point.num_moved_edits
        note = f"{num_whole} of them whole" if num_whole else ""
        table.add_row(f"{point.num_repaired_tokens} repaired", num_edits, "", *_cells(point.drift), note)
    table.add_section()
    for group in verified.by_tail:
        table.add_row(group.name, str(group.num_edits), f"{group.max_computed_tokens:,}", *_cells(group.drift), "")
    table.add_section()
    for kind, verdict in verified.gate.kinds.items():
        computed = f"{verdict.max_computed_tokens:,}"
        table.add_row(kind, str(verdict.num_edits), computed, *_cells(verdict.drift), _note(verdict))
    return table


def _cells(drift: Drift | None) -> tuple[str, ...]:
    if drift is None:
        return ("",) * 5
    divergences = (f"{value:.1e}" for value in (drift.mean, drift.p99, drift.max))
    return *divergences, f"{drift.agreement:.1%}", f"{drift.nll_change:+.4f}"


def _note(verdict: KindVerdict) -> str:
    if verdict.is_open:
        return "[green]passed[/green]"
    return f"[yellow]exact only[/yellow] [dim]({escape(verdict.reason)})[/dim]"


def _probe_lines(probes: tuple[Probed, ...]) -> Iterator[str]:
    for kind in PROBE_KINDS:
        answers = Counter[Answer](probe.answer for probe in probes if probe.kind == kind)
        if not answers:
            yield f"{PROBE_NAMES[kind]}: [yellow]nothing to ask about[/yellow]"
            continue
        failed = f", [bold red]{answers['failed']} failed[/bold red]" if answers["failed"] else ""
        unclear = f", {answers['cannot tell']} cannot tell: the model fails them cold" if answers["cannot tell"] else ""
        yield f"{PROBE_NAMES[kind]}: {answers['passed']} of {answers.total()}{failed}{unclear}"


def _conclusion(verified: DriftVerified) -> str:
    passed = [kind for kind, verdict in verified.gate.kinds.items() if verdict.is_open]
    if verified.has_passed:
        return "[green]Fidelity approximate may be used for every kind of edit.[/green]"
    if not passed:
        return "[yellow]Fidelity approximate stays shut for this model: every edit is computed exactly.[/yellow]"
    return f"[yellow]Fidelity approximate may be used for {', '.join(passed)}; all else is computed exactly.[/yellow]"
