"""How what is kept on disk is shown: the tree of conversations, sums, sizes and ages."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.index import ModelEntry
from kvstet.cache.inventory import Chain, Inventory
from kvstet.cli.console import FILE_COLUMNS

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
AGES = ((86400, "days"), (3600, "h"), (60, "min"))

MAX_LINES = 30
"""Of what a question lists."""


def stdout_console() -> Console:
    """Standard output: for a terminal in its width, for a file in lines as long as they are."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS
    return console


# Words


def size_text(num_bytes: int) -> str:
    """1,536 -> 1.5 KiB."""
    size, unit = float(num_bytes), 0
    while size >= 1023.95 and unit + 1 < len(UNITS):
        size, unit = size / 1024, unit + 1
    return f"{size:,.1f} {UNITS[unit]}" if unit else f"{num_bytes} bytes"


def age_text(seconds: float) -> str:
    """How long ago something was."""
    for unit_seconds, name in AGES:
        if seconds >= unit_seconds:
            number = int(seconds // unit_seconds)
            return f"{number} {'day' if (number, name) == (1, 'days') else name} ago"
    return "just now"


def count_text(number: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def files_text(num_files: int, num_bytes: int) -> str:
    return f"{count_text(num_files, 'file')}, {size_text(num_bytes)}"


def model_text(model: ModelEntry) -> str:
    return f"{model.name or 'a model without a name'} ({model.fingerprint.hex()[:8]})"


def id_text(chain: Chain) -> str:
    return chain.id.hex()[:8]


def state_text(chain: Chain) -> str:
    """What is there to resume from."""
    counts = ((chain.num_spans, "span"), (chain.num_checkpoints, "checkpoint"))
    return ", ".join(count_text(number, noun) for number, noun in counts if number)


# Trees


def show_tree(console: Console, inventory: Inventory, now: float, num_quarantined: int) -> None:
    """One model's conversations, one line from fork to fork."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for justify in ("right", "right", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for guide, chain in _guided(inventory.roots):
        table.add_row(
            f"[dim]{guide}[/dim][bold]{id_text(chain)}[/bold]",
            f"{chain.start:,}-{chain.stop:,}",
            size_text(chain.num_bytes),
            state_text(chain),
            age_text(now - chain.last_used),
            count_text(chain.num_hits, "hit"),
        )
    model = inventory.model
    console.print(f"[bold]{escape(model_text(model))}[/bold]  {files_text(model.num_blobs, model.num_bytes)}")
    console.print(table)
    if inventory.lost:
        num_bytes = sum(record.num_bytes for record in inventory.lost)
        console.print(f"{files_text(len(inventory.lost), num_bytes)} lead nowhere; the model's next start deletes them")
    if num_quarantined:
        console.print(f"{count_text(num_quarantined, 'state')} in quarantine")


def tree_json(inventories: Iterable[Inventory]) -> str:
    """The same for programs; flat, since a tree may be deeper than they can read."""
    return msgspec.json.format(msgspec.json.encode([_model_fields(inventory) for inventory in inventories])).decode()


def _model_fields(inventory: Inventory) -> dict[str, object]:
    model = inventory.model
    return {
        "fingerprint": model.fingerprint.hex(),
        "name": model.name,
        "num_blobs": model.num_blobs,
        "num_bytes": model.num_bytes,
        "last_used": model.last_used,
        "conversations": [
            {
                "id": chain.id.hex(),
                "parent": chain.parent and chain.parent.id.hex(),
                "start": chain.start,
                "stop": chain.stop,
                "num_bytes": chain.num_bytes,
                "num_spans": chain.num_spans,
                "num_checkpoints": chain.num_checkpoints,
                "last_used": chain.last_used,
                "num_hits": chain.num_hits,
            }
            for chain in inventory.chains()
        ],
    }


def _guided(roots: list[Chain]) -> Iterator[tuple[str, Chain]]:
    """Each chain with the lines that lead to it."""
    stack = [("", "", chain) for chain in reversed(roots)]
    while stack:
        guide, below, chain = stack.pop()
        yield guide, chain
        last = len(chain.children) - 1
        lines = [
            (below + ("└ " if i == last else "├ "), below + ("  " if i == last else "│ ")) for i in range(last + 1)
        ]
        stack.extend((*line, child) for line, child in reversed(list(zip(lines, chain.children, strict=True))))


# Sums


def show_usage(console: Console, folder: Path, models: list[ModelEntry], index_bytes: int) -> None:
    """What each model and the index take."""
    total_bytes = sum(model.num_bytes for model in models)
    all_bytes = total_bytes + index_bytes
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    for model in models:
        files = count_text(model.num_blobs, "file")
        table.add_row(escape(model_text(model)), files, size_text(model.num_bytes), _share(model.num_bytes, all_bytes))
    table.add_row("index", "", size_text(index_bytes), _share(index_bytes, all_bytes))
    files = count_text(sum(model.num_blobs for model in models), "file")
    table.add_row("[bold]total[/bold]", files, size_text(all_bytes), "")
    console.print(table)
    console.print(f"[dim]in {escape(str(folder))}[/dim]")


def _share(num_bytes: int, all_bytes: int) -> str:
    return f"{num_bytes / all_bytes:.1%}" if all_bytes else ""


# Questions


def show_chains(console: Console, inventory: Inventory, records: Collection[Record]) -> None:
    """These blobs of a model, by the conversations they are of."""
    keys = {record.key for record in records}
    lines: list[str] = []
    for chain in inventory.chains():
        part = [record for record in chain.records if record.key in keys]
        if part:
            start, stop = min(record.origin for record in part), max(record.stop for record in part)
            num_bytes = sum(record.num_bytes for record in part)
            lines.append(f"  {id_text(chain)}  tokens {start:,}-{stop:,}  {files_text(len(part), num_bytes)}")
    console.print(escape(model_text(inventory.model)))
    for line in lines[:MAX_LINES]:
        console.print(line)
    if len(lines) > MAX_LINES:
        console.print(f"  and {len(lines) - MAX_LINES:,} more")
