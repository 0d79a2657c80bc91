"""Reasoning as ``encrypted_content``: clients that keep nothing else of a reasoning item send it back unread.

It is a wrapping and no secret: anyone can read it, as they can read the summary beside it. It carries the whole text,
so it holds across restarts and servers.

Base64 of: ``kvstet``, a version byte, 8 bytes of BLAKE2b over the text, the text in UTF-8.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import b64decode, b64encode

_HEAD = b"kvstet\x01"
_DIGEST_BYTES = 8


def seal(text: str) -> str:
    data = text.encode(errors="replace")
    return b64encode(_HEAD + _digest(data) + data).decode()


def unseal(content: str) -> str | None:
    """The text; None where it was not sealed here, or was damaged since."""
    try:
        payload = b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        return None
    start = len(_HEAD) + _DIGEST_BYTES
    head, digest, data = payload[: len(_HEAD)], payload[len(_HEAD) : start], payload[start:]
    return data.decode() if head == _HEAD and digest == _digest(data) else None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
