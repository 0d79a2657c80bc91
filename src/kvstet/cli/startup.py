"""What the server says of itself when it is up."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvstet.config import MIB, EngineOptions
from kvstet.engine.messages import ModelInfo


def show_startup(console: Console, url: str, info: ModelInfo, engine: EngineOptions) -> None:
    """Address, model, memory kind, and what the cache may take."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("address", escape(f"{url}/v1"))
    table.add_row("model", escape(f"{info.name} ({info.description}, {info.size_bytes / MIB:,.0f} MiB)"))
    table.add_row("context", f"{info.context_length:,} tokens a request, {info.parallel} requests at a time")
    table.add_row("memory", f"{info.memory_kind}: {info.memory_summary}")
    table.add_row("cache", cache_line(info, engine))
    table.add_row("disk", escape(disk_line(info, engine)))
    console.print(table, highlight=False)


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
