"""Request bodies: read within a limit, decoded into Structs, with errors that say where."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import TypeVar, cast

import anyio
import anyio.to_thread
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request

from kvstet.api.errors import ClientGone
from kvstet.errors import InvalidRequest

T = TypeVar("T")

_INLINE_BYTES = 16 * 1024
"""Up to this body size, decoding, rendering and tokenising take less time than a thread switch is worth."""

_LINGER_SECONDS = 1.0
"""How long the rest of a body that is too large is read and dropped."""

MAX_DEPTH = 100
"""Most levels of objects and arrays in a body. Templates, schemas and JSON are recursive all the way down, and Python
has room for about a thousand calls; what clients mean has a dozen levels."""

_PATH = re.compile(r" - at `\$\.?(.*)`$")

_LEAVES = frozenset({str, int, float, bool, type(None)})

_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL)
"""One JSON escape; group 1 is half of a surrogate pair without the other half."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises 413 once it is longer than ``max_bytes``, whatever its content-length said."""
    size = _declared_bytes(request)
    num_read = 0
    chunks: list[bytes] = []
    more = True
    while more and size <= max_bytes:
        chunk, more = await _receive(request)
        num_read += len(chunk)
        size = max(size, num_read)
        chunks.append(chunk)
    if size > max_bytes:
        if more:
            await _drop_rest(request)
        raise HTTPException(413, f"The body is larger than {max_bytes:,} bytes.", {"connection": "close"})
    return b"".join(chunks)


async def in_worker(num_bytes: int, function: Callable[[], T]) -> T:
    """``function()``, in a worker thread if it has more than a few bytes to work on, so that the loop never waits."""
    if num_bytes <= _INLINE_BYTES:
        return function()
    return await anyio.to_thread.run_sync(function)


def decode(body: bytes, kind: type[T]) -> T:
    """The body as a ``kind``. InvalidRequest: it is not JSON, or a field is absurd; ``param`` names the field."""
    try:
        decoded = _decode(body, kind)
    except msgspec.ValidationError as error:
        raise _invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"The body is not valid JSON in UTF-8: {error}.") from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(decoded)
    return decoded


def _check_depth(decoded: object) -> None:
    """InvalidRequest for more than `MAX_DEPTH` levels. Fields that nobody reads are not there any more.

    Goes down level by level: a walk in one call, whose cost is small beside decoding.
    """
    level: list[object] = [decoded]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent) if type(child) not in _LEAVES]
        if not level:
            return
    raise _too_deep()


def _children(container: object) -> Iterable[object]:
    match container:
        case dict():
            return cast("dict[str, object]", container).values()
        case list() | tuple():
            return cast("Iterable[object]", container)
        case msgspec.Struct():
            return msgspec.structs.astuple(container)
        case _:
            return ()


def _too_deep() -> InvalidRequest:
    return InvalidRequest(f"The body is nested more than {MAX_DEPTH} levels deep.")


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        mended = mend_surrogates(body)
        if mended == body:
            raise
        return msgspec.json.decode(mended, type=kind)


def mend_surrogates(body: bytes) -> bytes:
    """Replace halves of surrogate pairs by U+FFFD.

    Clients written in JavaScript cut tool output at any UTF-16 unit, and then send half of an emoji with every
    following request.
    """
    return _ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)


def _invalid_field(message: str) -> InvalidRequest:
    path = _PATH.search(message)
    if path is None:
        return InvalidRequest(f"The body is invalid: {message}.")
    return InvalidRequest(f"Invalid '{path[1]}': {message[: path.start()]}.", param=path[1])


def _declared_bytes(request: Request) -> int:
    try:
        return int(request.headers.get("content-length", "0"))
    except ValueError:
        return 0


async def _receive(request: Request) -> tuple[bytes, bool]:
    """The next piece of the body, and whether more follows."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


async def _drop_rest(request: Request) -> None:
    """Read on for a while: a connection closed with unread input is reset, and the answer would be lost with it."""
    deadline = time.monotonic() + _LINGER_SECONDS
    with anyio.move_on_after(_LINGER_SECONDS):
        more = True
        while more and time.monotonic() < deadline:
            _, more = await _receive(request)
