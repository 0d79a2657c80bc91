"""``kvstet cache``: look at, check, delete and move what `kvstet serve` keeps on disk; no model is loaded."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from kvstet.cache import bundle
from kvstet.cache.bundle import Imported
from kvstet.cache.disk.index import ModelEntry
from kvstet.cache.disk.store import DiskStore, blob_files, damage, index_bytes, is_cache_folder
from kvstet.cache.inventory import Inventory
from kvstet.cache.tree import Node
from kvstet.chat import ledger
from kvstet.cli import listing
from kvstet.cli.console import stderr_console
from kvstet.cli.listing import count_text, files_text, id_text, model_text, size_text
from kvstet.cli.selection import absolute, chosen, inventory, named, nodes_to_remove
from kvstet.cli.serve import CACHE_FOLDER_VARIABLE, DEFAULT_CACHE_FOLDER
from kvstet.errors import BadExport, NotKept

app = typer.Typer(
    name="cache", help="Show, check, delete and move what `kvstet serve` keeps on disk.", no_args_is_help=True
)

console = listing.stdout_console()
errors = stderr_console()

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
WHAT_TO_NAME = "Name conversations by their IDs, or a model with --model, or an age with --older-than."


def seconds_of(text: str) -> float:
    """7d -> 604800."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if found is None:
        raise typer.BadParameter(f"{text!r} is not an age like 90m, 12h, 7d or 2w.")
    return float(found[1]) * UNIT_SECONDS[found[2]]


Folder = Annotated[Path, typer.Option("--cache-dir", help="Folder with saved state.", envvar=CACHE_FOLDER_VARIABLE)]
OneModel = Annotated[str | None, typer.Option("--model", help="Name of a model, or how its fingerprint begins.")]
Yes = Annotated[bool, typer.Option("-y", "--yes", help="Do not ask.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Conversations, as `ls` names them.")]
Age = Annotated[float | None, typer.Option(parser=seconds_of, metavar="AGE", help="Not used for so long: 12h, 7d, 2w.")]


@app.command()
def ls(
    cache_dir: Folder = DEFAULT_CACHE_FOLDER,
    model: OneModel = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show each model's tree of conversations, one line from fork to fork."""
    with opened(cache_dir, otherwise="[]" if json else "") as store:
        inventories = [inventory(store, entry) for entry in chosen(store, model) if entry.num_blobs]
        if json:
            typer.echo(listing.tree_json(inventories))
            return
        for number, one in enumerate(inventories):
            if number:
                console.print()
            listing.show_tree(console, one, time.time(), len(store.quarantined(one.model.fingerprint)))
        if not inventories:
            say_nothing_is_kept(store.folder)


@app.command()
def du(cache_dir: Folder = DEFAULT_CACHE_FOLDER, model: OneModel = None) -> None:
    """Show how much each model takes, and the index of all."""
    with opened(cache_dir) as store:
        models = [entry for entry in chosen(store, model) if entry.num_blobs]
        listing.show_usage(console, store.folder, models, index_bytes(store.folder))


@app.command()
def rm(
    ids: Ids = None,
    cache_dir: Folder = DEFAULT_CACHE_FOLDER,
    model: OneModel = None,
    older_than: Age = None,
    yes: Yes = False,
) -> None:
    """Delete conversations with all that goes on from them, a whole model, or what was not used for long."""
    if not (ids or model or older_than is not None) or (ids and older_than is not None):
        raise typer.BadParameter(WHAT_TO_NAME)
    with opened(cache_dir) as store:
        models = chosen(store, model)
        if ids or older_than is not None:
            remove_nodes(store, nodes_to_remove(store, models, ids or [], older_than), yes=yes)
        else:
            remove_models(store, models, yes=yes)


@app.command()
def purge(cache_dir: Folder = DEFAULT_CACHE_FOLDER, yes: Yes = False) -> None:
    """Delete everything: all state, the index, replies, temporary files, notes of quarantine and measurements."""
    with opened(cache_dir) as store:
        kept = files_text(sum(entry.num_blobs for entry in store.models()), store.used_bytes)
        confirm(f"Delete all that is kept in {store.folder} ({kept})?", yes=yes)
        store.purge(None)
        ledger.purge(store.folder / ledger.FILE)
        console.print(f"Deleted {kept}.")


@app.command()
def verify(
    cache_dir: Folder = DEFAULT_CACHE_FOLDER,
    delete: Annotated[bool, typer.Option("--delete", help="Delete the files that are damaged.")] = False,
) -> None:
    """Read every file and compare its checksums. Exit status 1 where one is damaged."""
    folder = absolute(cache_dir)
    if not is_cache_folder(folder):
        say_nothing_is_kept(folder)
        return
    # Without the index: to open it would delete what is plainly damaged.
    sizes = {path: num_bytes for path in blob_files(folder) if (num_bytes := size_of(path)) is not None}
    damaged: list[Path] = []
    with progress("checking", sum(sizes.values())) as on_progress:
        for path, num_bytes in sizes.items():
            sentence = damage_if_there(path)
            if sentence:
                damaged.append(path)
                console.print(escape(sentence), soft_wrap=True)
            on_progress(num_bytes)
    if not damaged:
        console.print(f"{files_text(len(sizes), sum(sizes.values()))}: all sound.")
        return
    console.print(f"{len(damaged):,} of {count_text(len(sizes), 'file')} damaged.")
    if delete:
        for path in damaged:
            path.unlink(missing_ok=True)
        DiskStore(folder).close()  # which makes the index agree
        console.print(f"Deleted {count_text(len(damaged), 'file')}; what they held is computed again.")
    raise typer.Exit(1)


@app.command(name="export")
def export_state(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    ids: Ids = None,
    cache_dir: Folder = DEFAULT_CACHE_FOLDER,
    model: OneModel = None,
) -> None:
    """Write conversations into one file: those named, with all that they go on from and that goes on from them."""
    folder, file = absolute(cache_dir), absolute(file)
    if not is_cache_folder(folder):
        raise NotKept(f"Nothing is kept in {folder}.")
    with closing(DiskStore(folder)) as store:
        inventories = [inventory(store, entry) for entry in chosen(store, model) if entry.num_blobs]
        if ids:
            kept = {one.model: one.needed(chains) for one, chains in named(inventories, ids).items()}
        else:
            kept = {one.model: one.needed(one.roots) for one in inventories}
        num_bytes = sum(record.num_bytes for records in kept.values() for record in records)
        if not num_bytes:
            raise NotKept(f"Nothing in {folder} can be exported.")
        with progress("exporting", num_bytes) as on_progress:
            done = bundle.export(file, store, kept, on_progress)
    console.print(f"Exported {files_text(done.num_blobs, done.num_bytes)}, to {escape(str(file))}.", soft_wrap=True)
    if done.num_left_out:
        console.print(f"Left out {count_text(done.num_left_out, 'file')}: damaged, or deleted meanwhile.")
    console.print("Whoever has this file can read these conversations.")


@app.command(name="import")
def import_state(
    file: Annotated[Path, typer.Argument(help="File that `export` wrote.")], cache_dir: Folder = DEFAULT_CACHE_FOLDER
) -> None:
    """Put what `export` wrote into the folder, once all of it is found sound."""
    file = absolute(file)
    with progress("checking", size_of(file) or 0) as on_progress:
        content = bundle.read_bundle(file, on_progress)
    with closing(DiskStore(absolute(cache_dir))) as store, progress("importing", content.num_bytes) as on_progress:
        results = bundle.publish(content, store, on_progress)
        names = {entry.fingerprint: model_text(entry) for entry in store.models()}
    for result in results:
        console.print(escape(f"{names[result.fingerprint]}: {imported_text(result)}."), soft_wrap=True)
    if not any(result.num_blobs or result.num_known for result in results):
        raise BadExport(f"Nothing in {file} could be imported.")


@contextmanager
def opened(folder: Path, otherwise: str = "") -> Generator[DiskStore]:
    """The folder's store; where there is none, the command ends, with ``otherwise`` on standard output."""
    folder = absolute(folder)
    if not is_cache_folder(folder):
        if otherwise:
            typer.echo(otherwise)
        else:
            say_nothing_is_kept(folder)
        raise typer.Exit
    with closing(DiskStore(folder)) as store:
        yield store


# Deleting


def remove_nodes(store: DiskStore, nodes: dict[Inventory, list[Node]], *, yes: bool) -> None:
    """Say what goes and what cannot, ask, and delete."""
    removals = {one: one.removal(gone) for one, gone in nodes.items()}
    goes = [record for removal in removals.values() for record in removal.goes]
    for one, removal in removals.items():
        if removal.goes:
            listing.show_chains(console, one, removal.goes)
        for record, chain in removal.stays:
            console.print(
                f"  stays: {size_text(record.num_bytes)} that hold tokens {record.origin:,}-{record.stop:,}, since"
                f" others go on from a part of them; `kvstet cache rm {id_text(chain)}` deletes all of these"
            )
    if not goes:
        console.print("Nothing to delete.")
        return
    text = files_text(len(goes), sum(record.num_bytes for record in goes))
    confirm(f"Delete {text}?", yes=yes)
    for one, removal in removals.items():
        # Ends first: whoever looks meanwhile, or finds what a kill has left, finds nothing that leads nowhere.
        store.remove(one.model.fingerprint, [record.key for record in reversed(removal.goes)])
    console.print(f"Deleted {text}.")


def remove_models(store: DiskStore, models: list[ModelEntry], *, yes: bool) -> None:
    """Say what goes, ask, and delete."""
    for entry in models:
        console.print(escape(f"{model_text(entry)}: {files_text(entry.num_blobs, entry.num_bytes)}"))
    text = files_text(sum(entry.num_blobs for entry in models), sum(entry.num_bytes for entry in models))
    confirm(f"Delete {text}?", yes=yes)
    for entry in models:
        store.purge(entry.fingerprint)
    console.print(f"Deleted {text}.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask, unless that was answered; anything but yes ends the command."""
    if not yes:
        typer.confirm(question, abort=True)


# Saying


def say_nothing_is_kept(folder: Path) -> None:
    console.print(f"Nothing is kept in {escape(str(folder))}.", soft_wrap=True)


def imported_text(result: Imported) -> str:
    parts = [f"imported {files_text(result.num_blobs, result.num_bytes)}"]
    if result.num_known:
        parts.append(f"{result.num_known:,} were there")
    if result.num_left_out:
        parts.append(f"{result.num_left_out:,} left out, since what they go on from is missing or in quarantine here")
    return "; ".join(parts)


def size_of(path: Path) -> int | None:
    """None: it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def damage_if_there(path: Path) -> str | None:
    """What is wrong with a blob; None also where it was deleted meanwhile."""
    try:
        return damage(path)
    except FileNotFoundError:
        return None


@contextmanager
def progress(what: str, total_bytes: int) -> Generator[Callable[[int], None]]:
    """A bar on the terminal; yields what takes how many more bytes are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda num_bytes: bar.advance(task, num_bytes)
