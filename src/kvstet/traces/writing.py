"""Whole traces into files: private ones, packed where their name ends in ``.xz``."""

from __future__ import annotations

import json
import lzma
import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from kvstet.errors import InvalidRequest
from kvstet.traces.format import Line

PRIVATE = 0o600


def encoded(line: Line) -> bytes:
    """As it stands in a file, without the newline."""
    try:
        return msgspec.json.encode(line)
    except UnicodeEncodeError:
        # Half of a surrogate pair, which a model or a client cut through. As an escape it can be written.
        return json.dumps(msgspec.to_builtins(line), separators=(",", ":")).encode()


def write_trace(lines: Iterable[Line], path: Path | None) -> int:
    """How many lines were written; None is standard output. The file is there when it is whole, in the place of one
    that was there before. InvalidRequest: it cannot be written."""
    with _whole(path) as file:
        count = 0
        for line in lines:
            file.write(encoded(line) + b"\n")
            count += 1
    return count


@contextmanager
def _whole(path: Path | None) -> Generator[BinaryIO]:
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
            if path.suffix == ".xz":
                with lzma.open(file, "wb") as packed:
                    yield cast("BinaryIO", packed)
            else:
                yield file
        part.replace(path)
    except OSError as error:
        raise InvalidRequest(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        part.unlink(missing_ok=True)
