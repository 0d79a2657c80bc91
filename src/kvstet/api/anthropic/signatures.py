"""Signatures of thinking blocks.

A signature is a checksum of the text, and no secret: it tells a thinking block that comes back as it was sent from one
that was changed, or that another model wrote. So it has no key, and holds across restarts and servers. Where the client
asked not to be shown the text, the signature carries it, so that the next request's prompt still has it.

``kvstet1.DIGEST`` or ``kvstet1.DIGEST.TEXT``, both in Base64.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode

_VERSION = "kvstet1"
_DIGEST_BYTES = 24


def signature_of(text: str) -> str:
    """For a block that shows its text."""
    digest = hashlib.sha256(_bytes(text)).digest()[:_DIGEST_BYTES]
    return f"{_VERSION}.{urlsafe_b64encode(digest).decode()}"


def carrying_signature_of(text: str) -> str:
    """For a block that is to show no text."""
    return f"{signature_of(text)}.{urlsafe_b64encode(_bytes(text)).decode()}"


def is_ours(text: str, signature: str) -> bool:
    """Whether this text was signed here, and has not been changed since."""
    known = signature_of(text)
    return signature == known or signature.startswith(f"{known}.")


def thinking_in(shown: str, signature: str) -> str:
    """The text of a block that came back: what it shows, or else what its signature carries undamaged.

    Text that was not signed here is taken as it is, where Anthropic's own API would refuse it: clients change models
    in the middle of a conversation.
    """
    if shown:
        return shown
    carried = _carried(signature)
    return carried if is_ours(carried, signature) else ""


def _carried(signature: str) -> str:
    version, *parts = signature.split(".")
    if version != _VERSION or len(parts) != 2:
        return ""
    try:
        return urlsafe_b64decode(parts[1]).decode()
    except (binascii.Error, ValueError):
        return ""


def _bytes(text: str) -> bytes:
    return text.encode(errors="replace")
