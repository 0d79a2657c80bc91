"""What a command of ``kvstet cache`` is about: a folder, models, and conversations by their IDs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

from kvstet.cache.disk.index import ModelEntry
from kvstet.cache.disk.store import DiskStore
from kvstet.cache.inventory import Chain, Inventory
from kvstet.cache.tree import Node
from kvstet.cli.listing import model_text
from kvstet.errors import NotKept

ID = re.compile(r"[0-9a-f]{4,32}")


def absolute(path: Path) -> Path:
    """As the commands and the server understand a path."""
    return path.expanduser().absolute()


def chosen(store: DiskStore, model: str | None) -> list[ModelEntry]:
    """The models that an option names: one, or all that go by one name, under other options. Raises NotKept."""
    models = store.models()
    if model is None:
        return models
    found = [entry for entry in models if entry.name == model]
    if not found and ID.fullmatch(model.lower()):
        found = [entry for entry in models if entry.fingerprint.hex().startswith(model.lower())]
        if len(found) > 1:
            full = ", ".join(entry.fingerprint.hex() for entry in found)
            raise NotKept(f"The fingerprint {model!r} fits {len(found)} models: {full}.")
    if not found:
        there = "; there are: " + ", ".join(map(model_text, models)) if models else ""
        raise NotKept(f"Nothing is kept of a model {model!r} in {store.folder}{there}.")
    return found


def inventory(store: DiskStore, model: ModelEntry) -> Inventory:
    """What is kept of a model."""
    return Inventory(model, store.records(model.fingerprint))


def named(inventories: list[Inventory], ids: Iterable[str]) -> dict[Inventory, list[Chain]]:
    """The conversations that have these IDs. Raises NotKept."""
    found: dict[Inventory, list[Chain]] = {}
    for id_ in ids:
        matches = (
            [(one, chain) for one in inventories for chain in one.find(id_.lower())]
            if ID.fullmatch(id_.lower())
            else []
        )
        if not matches:
            raise NotKept(f"No conversation has the ID {id_!r}; `kvstet cache ls` shows them.")
        if len(matches) > 1:
            full = ", ".join(chain.id.hex() for _, chain in matches)
            raise NotKept(f"The ID {id_!r} fits {len(matches)} conversations: {full}.")
        found.setdefault(matches[0][0], []).append(matches[0][1])
    return found


def nodes_to_remove(
    store: DiskStore, models: list[ModelEntry], ids: list[str], older_than: float | None
) -> dict[Inventory, list[Node]]:
    """Whole branches: those that were named, or those that were not used for ``older_than`` seconds."""
    inventories = [inventory(store, entry) for entry in models]
    if older_than is not None:
        return {one: one.older_than(time.time() - older_than) for one in inventories}
    return {
        one: [node for chain in chains for part in chain.walk() for node in part.nodes]
        for one, chains in named(inventories, ids).items()
    }
