"""Sessions in SQLite, saved message by message, to be resumed and forked.

Messages are kept once, each under the id that chains it to all before it (`kvstet.context.writing.history`), as git
keeps commits. So a session is a row of saves, each of which names its last message; a fork shares what it begins with,
and what a compaction took away can still be gone back to.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kvstet.context.conversation import Context
from kvstet.context.writing.history import Entry, EntryId, History
from kvstet.errors import BrokenHistory, SessionError

_BUSY_SECONDS = 10.0
_MAX_TITLE_CHARACTERS = 80
_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id TEXT PRIMARY KEY, before TEXT NOT NULL, text TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT PRIMARY KEY, parent TEXT, title TEXT NOT NULL, workspace TEXT NOT NULL, model TEXT NOT NULL,
    created REAL NOT NULL, saved REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS saves (
    session TEXT NOT NULL REFERENCES sessions (id), number INTEGER NOT NULL, step INTEGER NOT NULL, head TEXT NOT NULL,
    frame TEXT NOT NULL, PRIMARY KEY (session, number)
) WITHOUT ROWID;
"""

_LATEST = "SELECT step, head, frame FROM saves WHERE session = :session ORDER BY number DESC LIMIT 1"

_AT_STEP = """
SELECT step, head, frame FROM saves LEFT JOIN entries ON entries.id = head
WHERE session = :session AND step <= :step AND json_extract(text, '$.role') IS NOT 'user' ORDER BY number DESC LIMIT 1
"""

_CHAIN = """
WITH RECURSIVE chain (id, before, text, place) AS (
    SELECT id, before, text, 0 FROM entries WHERE id = ?
    UNION ALL
    SELECT entries.id, entries.before, entries.text, place + 1 FROM entries JOIN chain ON entries.id = chain.before
) SELECT id, text FROM chain ORDER BY place DESC
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """One session."""

    id: str
    title: str
    """How the user's first message begins."""
    workspace: str
    model: str
    created: float
    saved: float
    """Seconds since 1970."""
    num_steps: int
    parent: str | None
    """The session that it was forked from, and at which step: ``ID@STEP``."""


class SessionStore:
    """All sessions of a user, in one file that nobody else can read. Safe with several processes."""

    def __init__(self, path: Path) -> None:
        """Raises SessionError."""
        self._path = path
        with _translated(path):
            _make_private(path)
            with closing(self._connection()) as database, database:
                _check_version(database, path)
                database.executescript(_SCHEMA)

    def __repr__(self) -> str:
        return f"SessionStore({str(self._path)!r})"

    def create(self, *, workspace: Path, model: str, parent: str | None = None, title: str = "") -> Session:
        """A new session, under an id of its own."""
        id = f"{time.strftime('%Y%m%d')}-{secrets.token_hex(4)}"
        row = (id, parent, title, _readable(str(workspace)), _readable(model), time.time(), time.time())
        with self._transaction() as database:
            database.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return Session(self, id)

    def sessions(self) -> list[SessionInfo]:
        """All of them, the latest first."""
        query = """
            SELECT id, parent, title, workspace, model, created, saved,
                (SELECT coalesce(max(step), 0) FROM saves WHERE session = sessions.id) AS num_steps
            FROM sessions ORDER BY saved DESC, id
        """
        with self._transaction() as database:
            return [SessionInfo(**row) for row in map(dict, database.execute(query))]

    def named(self, id: str | None) -> SessionInfo:
        """The session whose id begins so; None: the latest. SessionError: there is none, or several."""
        found = [info for info in self.sessions() if info.id.startswith(id or "")]
        if id is None and found:
            return found[0]
        exact = [info for info in found if info.id == id]
        if len(found) == 1 or exact:
            return (exact or found)[0]
        raise SessionError(f"{len(found) or 'No'} sessions begin with {id!r}." if id else "There is no session yet.")

    def resumed(self, id: str) -> tuple[Session, Context, int]:
        """A session as it was saved last: with its conversation and the number of its latest step."""
        context, step = self._context(id, None)
        return Session(self, id), context, step

    def forked(self, id: str, step: int | None, *, model: str) -> tuple[Session, Context, int]:
        """A new session that goes on from another's step, with what its calls returned and before the user said more;
        None: from its end."""
        origin = self.named(id)
        context, step = self._context(origin.id, step)
        parent = f"{origin.id}@{step}"
        session = self.create(workspace=Path(origin.workspace), model=model, parent=parent, title=origin.title)
        session.save(context, step)
        return session, context, step

    def save(self, id: str, context: Context, step: int) -> None:
        frame = cast("dict[str, Any]", json.loads(context.to_json()))
        del frame["history"]
        with self._transaction() as database:
            _add_entries(database, context.history)
            number = database.execute("SELECT count(*) FROM saves WHERE session = ?", (id,)).fetchone()[0]
            row = (id, number, step, context.history.head, json.dumps(frame))
            database.execute("INSERT INTO saves VALUES (?, ?, ?, ?, ?)", row)
            title = _title(context)
            database.execute(
                "UPDATE sessions SET saved = ?, title = CASE title WHEN '' THEN ? ELSE title END WHERE id = ?",
                (time.time(), title, id),
            )

    def _context(self, id: str, step: int | None) -> tuple[Context, int]:
        with self._transaction() as database:
            row = database.execute(_LATEST if step is None else _AT_STEP, {"session": id, "step": step}).fetchone()
            if row is None:
                where = "" if step is None else f" at step {step}"
                raise SessionError(f"Session {id} has nothing to go on from{where}.")
            entries = [Entry(EntryId(each["id"]), each["text"]) for each in database.execute(_CHAIN, (row["head"],))]
        try:
            stored = {**json.loads(row["frame"]), "history": History(entries).to_json()}
            context = Context.from_json(json.dumps(stored))
        except (BrokenHistory, ValueError) as error:
            raise SessionError(f"Session {id} is damaged: {error}") from error
        if context.history.head != row["head"]:
            raise SessionError(f"Session {id} is damaged: messages are missing.")
        return context, int(row["step"])

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with _translated(self._path), closing(self._connection()) as database, database:
            yield database

    def _connection(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_BUSY_SECONDS)
        database.row_factory = sqlite3.Row
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA foreign_keys = ON")
        return database


@dataclass(frozen=True, slots=True)
class Session:
    """A `kvstet.agent.journal.Journal` that keeps one session."""

    store: SessionStore
    id: str

    def save(self, context: Context, step: int) -> None:
        self.store.save(self.id, context, step)


def _make_private(path: Path) -> None:
    """The folder is the user's alone, and so is the file from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(path.parent, 0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    os.chmod(path, 0o600)


def _check_version(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise SessionError(f"{path} was written by another version of kvstet.")
    database.execute(f"PRAGMA user_version = {_VERSION}")


def _add_entries(database: sqlite3.Connection, history: History) -> None:
    """Those that are not there yet; they are at the end."""
    entries = list(history)
    befores = ["", *(entry.id for entry in entries)]
    for entry, before in reversed(list(zip(entries, befores, strict=False))):
        added = database.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", (entry.id, before, entry.text))
        if not added.rowcount:
            return


def _title(context: Context) -> str:
    for message in context.history.messages:
        content: object = message.get("content")
        if message.get("role") == "user" and isinstance(content, str):
            said = content.rpartition("</system-reminder>")[2]
            return _readable(" ".join(said.split()))[:_MAX_TITLE_CHARACTERS]
    return ""


def _readable(text: str) -> str:
    """For a list of sessions. Names of folders, and what is typed, need not be text; what SQLite keeps has to be."""
    return text.encode(errors="replace").decode()


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise SessionError(f"The sessions in {path} cannot be used: {error}.") from error
