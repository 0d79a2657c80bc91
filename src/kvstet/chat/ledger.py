"""What the model said, token by token, so that its own replies come back to it as it wrote them.

A client sends a reply back as a message: its text is tokenised anew, its arguments are serialised anew, and the tokens
may be others than those that the model generated, whose state is in the cache. The ledger finds the generated tokens by
what the reply *means*: its reasoning, its text and its calls, whatever ids the calls have by now.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import cast

import numpy as np

from kvstet.chat.deltas import ParsedReply
from kvstet.chat.messages import Message
from kvstet.chat.tools import Defaults
from kvstet.types import Tokens

logger = logging.getLogger("kvstet.chat")

FILE = Path("v1", "replies.sqlite3")
"""In the cache folder."""

BUSY_SECONDS = 0.5

MAX_REPLIES = 20_000
"""The longest unused are forgotten first."""

MAX_SIBLINGS = 8
"""Replies that mean the same, by what came before them."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    model BLOB NOT NULL, meaning BLOB NOT NULL, prompt BLOB NOT NULL, opening TEXT NOT NULL, tokens BLOB NOT NULL,
    ending TEXT NOT NULL,
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, UNIQUE (model, meaning, prompt) ON CONFLICT REPLACE);
"""


@dataclass(frozen=True, slots=True)
class Said:
    """A reply as it was generated, without the token that ended it."""

    prompt: bytes
    """Digest of the prompt's text."""
    opening: str
    """The generation prompt: what the template opens a reply with."""
    tokens: Tokens
    ending: str
    """Text of the token that ended it; empty where none did."""


class Ledger:
    """Replies of one model, in memory or in a file. Thread-safe.

    It never raises: a reply that it cannot note or find costs time, and nothing else.
    """

    def __init__(self, path: Path | None = None, model: bytes = b"", *, max_replies: int = MAX_REPLIES) -> None:
        """``model`` names tokenizer and template. A file that cannot be used is left alone."""
        self._model = model
        self._max_replies = max_replies
        self._lock = Lock()
        self._is_failing = False
        try:
            self._db = _open(path)
        except (OSError, sqlite3.Error) as error:
            logger.warning("Replies are remembered until the server stops only: %s (%s).", error, path)
            self._db = _open(None)

    def remember(self, meaning: bytes, said: Said) -> None:
        """Note a reply."""
        row = (self._model, meaning, said.prompt, said.opening, said.tokens.astype("<i4").tobytes(), said.ending)
        with self._lock, self._tolerant():
            self._db.execute(
                "INSERT INTO replies (model, meaning, prompt, opening, tokens, ending) VALUES (?, ?, ?, ?, ?, ?)", row
            )
            newest = self._db.execute("SELECT max(sequence) FROM replies").fetchone()[0]
            self._db.execute("DELETE FROM replies WHERE sequence <= ?", (newest - self._max_replies,))

    def forget(self, meaning: bytes) -> None:
        """No reply that means this is found again."""
        with self._lock, self._tolerant():
            self._db.execute("DELETE FROM replies WHERE model = ? AND meaning = ?", (self._model, meaning))

    def find(self, meaning: bytes) -> list[Said]:
        """Replies that mean this, the latest first."""
        query = (
            "SELECT prompt, opening, tokens, ending FROM replies WHERE model = ? AND meaning = ?"
            " ORDER BY sequence DESC LIMIT ?"
        )
        rows: list[tuple[bytes, str, bytes, str]] = []
        with self._lock, self._tolerant():
            rows = self._db.execute(query, (self._model, meaning, MAX_SIBLINGS)).fetchall()
        return [Said(prompt, opening, np.frombuffer(tokens, "<i4"), ending) for prompt, opening, tokens, ending in rows]

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def _tolerant(self) -> Generator[None]:
        try:
            yield
            self._is_failing = False
        except sqlite3.Error as error:
            if not self._is_failing:
                logger.warning("Replies cannot be remembered, or not be found again: %s.", error)
            self._is_failing = True


def purge(path: Path) -> None:
    """Forget all replies in a file, and leave no trace of them. Raises sqlite3.Error."""
    if path.exists():
        with closing(_open(path)) as db:
            db.execute("DELETE FROM replies")
            db.execute("VACUUM")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _open(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
    db = sqlite3.connect(path or ":memory:", timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA secure_delete = ON")  # conversations are private, deleted ones too
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def meaning_of(reply: ParsedReply) -> bytes:
    """Digest of what a reply says."""
    return _digest(reply.reasoning, reply.text, [(call.name, call.arguments) for call in reply.calls])


def lean_meaning_of(reply: ParsedReply, owner: str) -> bytes:
    """Digest of what a reply to this API key says, whatever it was reasoned before."""
    return _lean_digest(owner, reply.text, [(call.name, call.arguments) for call in reply.calls])


def lean_meanings_of_message(message: Message, defaults: Defaults, owner: str) -> tuple[bytes, ...]:
    """As `meanings_of_message`, without the reasoning."""
    return tuple(_lean_digest(owner, str(message["content"]), calls) for calls in _calls_of(message, defaults))


def meanings_of_message(message: Message, defaults: Defaults) -> tuple[bytes, ...]:
    """Digests of what an assistant's message, normalised, says: as it stands, and without arguments that are defaults.

    A client may have written out what the model left to the tools' defaults.
    """
    reasoning, text = str(message.get("reasoning_content", "")), str(message["content"])
    return tuple(_digest(reasoning, text, calls) for calls in _calls_of(message, defaults))


def _calls_of(message: Message, defaults: Defaults) -> Sequence[Sequence[tuple[str, object]]]:
    calls = cast("Sequence[Mapping[str, Mapping[str, object]]]", message.get("tool_calls", ()))
    named = [(str(call["function"]["name"]), call["function"]["arguments"]) for call in calls]
    shorter = [(name, _without(arguments, defaults.get(name, {}))) for name, arguments in named]
    return (named,) if shorter == named else (named, shorter)


def _without(arguments: object, defaults: Mapping[str, object]) -> object:
    if isinstance(arguments, Mapping):
        named = cast("Mapping[str, object]", arguments)
        return {name: value for name, value in named.items() if name not in defaults or value != defaults[name]}
    return arguments


def _digest(reasoning: str, text: str, calls: Sequence[tuple[str, object]]) -> bytes:
    # Clients trim white space around what they keep.
    return _digest_of([reasoning.strip(), text.strip(), _canonical_calls(calls)])


def _lean_digest(owner: str, text: str, calls: Sequence[tuple[str, object]]) -> bytes:
    return _digest_of({"owner": owner, "text": text.strip(), "calls": _canonical_calls(calls)})


def _digest_of(meant: object) -> bytes:
    return hashlib.blake2b(json.dumps(meant).encode(), digest_size=16).digest()


def _canonical_calls(calls: Sequence[tuple[str, object]]) -> list[tuple[str, str]]:
    return [(name, _canonical(arguments)) for name, arguments in calls]


def _canonical(arguments: object) -> str:
    """Equal for arguments that are written differently and mean the same."""
    if isinstance(arguments, str):
        try:
            arguments = cast("object", json.loads(arguments or "{}"))
        except (ValueError, RecursionError):
            return arguments.strip()
    return json.dumps(arguments, sort_keys=True)
