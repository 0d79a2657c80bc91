"""Where opencode keeps its sessions, read into one form: a database, a folder of JSON files, or an export."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from kvstet.dialects.values import Object, from_json, obj, objects, optional_text, text
from kvstet.errors import InvalidRequest
from kvstet.traces.importing.files import SessionFile, connected, tables_of

DATABASE = "opencode.db"
STORAGE = "storage"

NUM_NAMED = 20
"""So many sessions are named where one has to be chosen."""

_TABLES = frozenset({"session", "message", "part"})
_DAMAGED = "a stored record that is no JSON object"


@dataclass(frozen=True, slots=True)
class Said:
    """A message."""

    info: Object = field(repr=False)
    parts: Sequence[Object] = field(repr=False)

    @property
    def id(self) -> str:
        return text(self.info.get("id"))

    @property
    def role(self) -> str:
        return text(self.info.get("role"))


@dataclass(frozen=True, slots=True)
class Conversation:
    """A session; those of sub-agents have a parent."""

    info: Object = field(repr=False)
    messages: Sequence[Said] = field(repr=False)

    @property
    def id(self) -> str:
        return text(self.info.get("id"))

    @property
    def parent(self) -> str | None:
        return optional_text(self.info.get("parentID")) or optional_text(self.info.get("parent_id"))


def is_storage(file: SessionFile) -> bool:
    """A database of opencode's, or a folder that holds one or what came before it."""
    place = _place(file.path)
    return place.name == STORAGE if place.is_dir() else file.beside(place).is_database and tables_of(place) >= _TABLES


def is_export(file: SessionFile) -> bool:
    return any(
        {"info", "messages"} <= line.keys() and any("parts" in said for said in objects(line["messages"]))
        for line in file.sample[:1]
    )


def family_of(file: SessionFile) -> list[Conversation]:
    """The session that is meant, or the only one, and all that it has begun. InvalidRequest: which is not clear."""
    if not is_storage(file):
        return [_exported(file.document)]
    place = _place(file.path)
    infos = _stored_infos(file, place) if place.is_dir() else _rows(file, place, "session", "1")
    chosen = _chosen(file, infos)
    load = _stored if place.is_dir() else _kept
    return [load(file, place, info) for info in _descended(chosen, infos)]


def _place(path: Path) -> Path:
    """The database, or the folder of JSON files."""
    if path.is_dir() and path.name != STORAGE:
        found = path / DATABASE
        return found if found.exists() else path / STORAGE if (path / STORAGE).is_dir() else path
    return path


def _chosen(file: SessionFile, infos: Sequence[Object]) -> Object:
    named = [info for info in infos if info.get("id") == file.session] if file.session else _roots(infos)
    if len(named) == 1:
        return named[0]
    if not infos:
        raise InvalidRequest(f"{file.path} holds no session.")
    which = ", ".join(f"{text(info.get('id'))} ({text(info.get('title'))})" for info in _roots(infos)[:NUM_NAMED])
    raise InvalidRequest(f"Say which session of {file.path} is meant: {which}.", param="session")


def _roots(infos: Sequence[Object]) -> list[Object]:
    return [info for info in infos if not (info.get("parent_id") or info.get("parentID"))]


def _descended(root: Object, infos: Sequence[Object]) -> list[Object]:
    """A session and those of its sub-agents, and of theirs."""
    family = {text(root.get("id")): root}
    grows = True
    while grows:
        more = [info for info in infos if _parent(info) in family and text(info.get("id")) not in family]
        family.update({text(info.get("id")): info for info in more})
        grows = bool(more)
    return list(family.values())


def _parent(info: Object) -> str:
    return text(info.get("parent_id")) or text(info.get("parentID"))


def _exported(document: Object) -> Conversation:
    return Conversation(
        obj(document.get("info")),
        [Said(obj(said.get("info")), objects(said.get("parts"))) for said in objects(document.get("messages"))],
    )


def _kept(file: SessionFile, place: Path, info: Object) -> Conversation:
    """Of the database."""
    id = text(info.get("id"))
    parts: dict[str, list[Object]] = {}
    for row in _rows(file, place, "part", "session_id = ?", id):
        parts.setdefault(text(row.get("message_id")), []).append(_data(file, row))
    messages = [_data(file, row) for row in _rows(file, place, "message", "session_id = ?", id)]
    return Conversation(info, [Said(said, parts.get(text(said.get("id")), ())) for said in messages])


def _rows(file: SessionFile, place: Path, table: str, where: str, *values: str) -> list[Object]:
    try:
        with closing(connected(place)) as connection:
            connection.row_factory = sqlite3.Row
            found: list[Mapping[str, object]] = [
                dict(row) for row in connection.execute(f"SELECT * FROM {table} WHERE {where} ORDER BY id", values)
            ]
            return found
    except sqlite3.Error as error:
        raise InvalidRequest(f"Cannot read {file.path}: {error}") from error


def _data(file: SessionFile, row: Object) -> Object:
    """A row's JSON, with its id."""
    return {**_decoded(file, text(row.get("data"))), "id": row.get("id")}


def _stored_infos(file: SessionFile, place: Path) -> list[Object]:
    return list(_records(file, place / "session", "*/*.json"))


def _stored(file: SessionFile, place: Path, info: Object) -> Conversation:
    """Of the folder."""
    messages = _records(file, place / "message" / text(info.get("id")), "*.json")
    return Conversation(
        info, [Said(said, list(_records(file, place / "part" / text(said.get("id")), "*.json"))) for said in messages]
    )


def _records(file: SessionFile, folder: Path, pattern: str) -> Iterator[Object]:
    """By name: ids are made to be in order."""
    for path in sorted(folder.glob(pattern), key=lambda path: path.name):
        try:
            yield _decoded(file, path.read_bytes())
        except OSError as error:
            raise InvalidRequest(f"Cannot read {path}: {error}") from error


def _decoded(file: SessionFile, data: str | bytes) -> Object:
    try:
        found = from_json(data)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return cast("Object", found)
    file.pass_over(_DAMAGED)
    return {}
