"""What the server says of itself when it is up."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvstet.api.ports import ModelStatus
from kvstet.config import MIB, EngineOptions, ServedOptions
from kvstet.engine.messages import ModelInfo


def show_startup(console: Console, url: str, models: Sequence[tuple[ServedOptions, ModelStatus]]) -> None:
    """Address, models, memory kinds, and what the caches may take."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("address", escape(f"{url}/v1"))
    for options, status in models:
        add_model(table, options, status)
    console.print(table, highlight=False)


def add_model(table: Table, options: ServedOptions, status: ModelStatus) -> None:
    """Of a model that is not loaded, its name and file."""
    info, engine = status.info, options.engine
    if info is None:
        table.add_row("model", escape(f"{status.names[0]} ({options.model.path.name}), loaded when it is asked for"))
        return
    table.add_row("model", escape(f"{status.names[0]} ({info.description}, {info.size_bytes / MIB:,.0f} MiB)"))
    table.add_row("context", f"{info.context_length:,} tokens a request, {info.parallel} requests at a time")
    table.add_row("memory", f"{info.memory_kind}: {info.memory_summary}")
    table.add_row("cache", cache_line(info, engine))
    table.add_row("disk", escape(disk_line(info, engine)))


def cache_line(info: ModelInfo, engine: EngineOptions) -> str:
    """How much state fits where."""
    live = f"{info.live_cells:,} tokens live"
    ram = f"{engine.cache_ram_bytes / MIB:,.0f} MiB in RAM"
    if info.span_bytes_per_token:
        ram += f" (about {engine.cache_ram_bytes // info.span_bytes_per_token:,} tokens)"
    if info.checkpoint_bytes:
        ram += f", {info.checkpoint_bytes / MIB:,.1f} MiB a checkpoint"
    return f"{live}, {ram}"


def disk_line(info: ModelInfo, engine: EngineOptions) -> str:
    """What may go to disk, where, and what was found there."""
    if engine.cache_folder is None:
        return "nothing is kept"
    found = f", {info.num_found_blobs:,} states of this model found" if info.num_found_blobs else ""
    return f"up to {engine.cache_disk_bytes / MIB:,.0f} MiB in {engine.cache_folder}{found}"
