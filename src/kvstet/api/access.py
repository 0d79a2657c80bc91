"""Access: the keys that clients may send, and how much each may ask for at a time and in a minute."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
import time
import tomllib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from kvstet.config import ApiKey, Fidelity
from kvstet.errors import KvstetError

logger = logging.getLogger("kvstet.api")

Limit = Literal["concurrency", "rate"]

_MINUTE_SECONDS = 60.0

_BUSY_SECONDS = 1.0
"""When to try again while others of the key's requests run: nobody knows when the first of them ends."""

_FORM = 'write [keys.NAME], and under it key = "...", and, if wanted, max_concurrent, requests_per_minute and fidelity'


class BadAccess(KvstetError):
    """What the user set about access cannot be used: a key, a file of keys, an origin or a host name."""


class LimitReached(Exception):
    """A key's request is one too many."""

    def __init__(self, limit: Limit, message: str, retry_after_seconds: float) -> None:
        super().__init__(message)
        self.limit: Limit = limit
        self.retry_after_seconds = retry_after_seconds


class Account:
    """What one key has used of its limits. For one thread."""

    def __init__(self, key: ApiKey, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = key
        self._clock = clock
        self._num_running = 0
        self._admissions: deque[float] = deque()
        """Times of the last minute; kept only where the rate is limited."""

    def __repr__(self) -> str:
        return f"Account({self._key!r}, num_running={self._num_running})"

    @property
    def key(self) -> ApiKey:
        return self._key

    @property
    def name(self) -> str:
        return self._key.name

    @property
    def num_running(self) -> int:
        return self._num_running

    def admit(self) -> AbstractContextManager[None]:
        """A block to be entered at once; the request is under way until it is left, however that happens.

        LimitReached: it is one too many. It then counts for nothing, or a client that keeps asking would never get in.
        """
        self._check_concurrency()
        self._take_turn()
        return self._under_way()

    @contextmanager
    def _under_way(self) -> Generator[None, None, None]:
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    def _check_concurrency(self) -> None:
        most = self._key.max_concurrent
        if most is not None and self._num_running >= most:
            message = f"The key '{self.name}' may have {most} requests under way at a time; wait until one has ended."
            raise LimitReached("concurrency", message, _BUSY_SECONDS)

    def _take_turn(self) -> None:
        most = self._key.requests_per_minute
        if most is None:
            return
        now = self._clock()
        while self._admissions and self._admissions[0] <= now - _MINUTE_SECONDS:
            self._admissions.popleft()
        if len(self._admissions) >= most:
            wait_seconds = self._admissions[0] + _MINUTE_SECONDS - now
            message = f"The key '{self.name}' may send {most} requests a minute; try again in {wait_seconds:.0f} s."
            raise LimitReached("rate", message, wait_seconds)
        self._admissions.append(now)


class Access:
    """Finds out whose request it is. Keys are held as salted hashes, all of one length, so that neither content nor
    length of a key can be told from the time that a comparison takes."""

    def __init__(self, keys: Iterable[ApiKey], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._salt = secrets.token_bytes(32)
        self._accounts = [(self._digest(key.secret.encode()), Account(key, clock)) for key in keys]

    def __repr__(self) -> str:
        return f"Access({[account for _, account in self._accounts]})"

    @property
    def is_open(self) -> bool:
        """Whether no key is asked for."""
        return not self._accounts

    def account_of(self, sent: Sequence[bytes]) -> Account | None:
        """The account of the first key that is known."""
        digests = [self._digest(key) for key in sent]
        # All pairs are compared, so that time tells nothing about which key it was.
        matches = [
            account for digest in digests for known, account in self._accounts if hmac.compare_digest(digest, known)
        ]
        return matches[0] if matches else None

    def _digest(self, key: bytes) -> bytes:
        return hashlib.blake2b(key, key=self._salt, digest_size=32).digest()


def gather_keys(nameless: Sequence[str], file: Path | None) -> tuple[ApiKey, ...]:
    """All keys of a server; the nameless ones have no limits, and are called key-1, key-2 ...

    A nameless key that stands in the file too is the file's, with its limits. Raises BadAccess.
    """
    named = () if file is None else read_key_file(file)
    known = {key.secret for key in named}
    others = [secret for secret in dict.fromkeys(nameless) if secret not in known]
    numbered = [ApiKey(f"key-{number}", _usable(secret)) for number, secret in enumerate(others, start=1)]
    taken = {key.name for key in named} & {key.name for key in numbered}
    if taken:
        raise BadAccess(f"Keys without a name are called key-1, key-2 ...; call {min(taken)} in {file} something else.")
    return (*named, *numbered)


def read_key_file(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a TOML file, at least one; warns of a file that others can read.

    Raises BadAccess, which says what is wrong and where, and never quotes a key.
    """
    tables = _tables(path)
    if not tables:
        # Without a key, the server would be open to all.
        raise BadAccess(f"The key file {path} has no key: {_FORM}.")
    keys = tuple(_key_of(name, table, path) for name, table in tables.items())
    names: dict[str, str] = {}
    for key in keys:
        other = names.setdefault(key.secret, key.name)
        if other != key.name:
            raise BadAccess(f"The key file {path} gives '{other}' and '{key.name}' the same key.")
    return keys


class _KeyTable(Struct, forbid_unknown_fields=True):
    """One ``[keys.NAME]``. A misspelt limit would be none, so unknown fields are refused."""

    key: str
    max_concurrent: Annotated[int, Meta(ge=1)] | None = None
    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    fidelity: Fidelity | None = None


def _tables(path: Path) -> Mapping[str, object]:
    try:
        with path.open("rb") as file:
            _warn_if_shared(os.fstat(file.fileno()), path)
            content: dict[str, Any] = tomllib.loads(file.read().decode())
    except OSError as error:
        raise BadAccess(f"The key file {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise BadAccess(f"The key file {path} is not in UTF-8.") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise BadAccess(f"The key file {path} is not valid TOML: {error}; {_FORM}.") from None
    unknown = [name for name in content if name != "keys"]
    tables: object = content.get("keys", {})
    if unknown or not isinstance(tables, dict):
        raise BadAccess(f"The key file {path} has something else than tables of keys: {_FORM}.")
    return cast("dict[str, object]", tables)


def _warn_if_shared(status: os.stat_result, path: Path) -> None:
    # Windows tells nothing in these bits.
    if os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("The key file %s can be read by others than its owner; chmod 600 keeps its keys secret.", path)


def _key_of(name: str, table: object, path: Path) -> ApiKey:
    if not name.strip() or not name.isprintable():
        raise BadAccess(f"The key file {path} has a key whose name cannot be printed: {name!r}.")
    try:
        fields = msgspec.convert(table, _KeyTable)
        limits = fields.max_concurrent, fields.requests_per_minute
        return ApiKey(name, _usable(fields.key), *limits, fidelity=fields.fidelity)
    except (msgspec.ValidationError, BadAccess) as error:
        raise BadAccess(f"The key file {path}, [keys.{name}]: {str(error).rstrip('.')}.") from None


def _usable(secret: str) -> str:
    """BadAccess unless a client can send the key: an empty one above all, which everybody would have."""
    if not secret:
        raise BadAccess("A key is empty.")
    if not secret.isprintable() or secret.strip() != secret:
        raise BadAccess("A key begins or ends with a blank, or cannot be printed; no client can send it.")
    return secret
