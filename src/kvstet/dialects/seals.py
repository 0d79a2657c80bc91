"""Reasoning that has to come back to its vendor as it was given: how it gets there through clients that cannot hold it.

Anthropic signs its thinking and refuses it without the signature; OpenAI gives reasoning out encrypted. Clients of the
Messages and the Responses API return such a seal to whoever sent it, so another vendor's seal is *carried* within
theirs (`carrier_of`, `carried_in`), and nothing has to be remembered. Most Chat clients return
``reasoning_content`` at best, so for them seals are remembered: `kvstet.dialects.seal_memory`.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from kvstet.dialects.values import from_json, objects, text, to_json

Detail = dict[str, Any]
"""One of ``reasoning_details``; see `kvstet.dialects.request`."""

_CARRIER = "kvstet-seal."


def carrier_of(details: Sequence[Mapping[str, Any]]) -> str:
    """An opaque text that holds the details. Never empty: clients drop what has no signature."""
    return _CARRIER + urlsafe_b64encode(to_json(details).encode()).decode()


def carried_in(seal: str, said: str) -> list[Detail] | None:
    """What `carrier_of` put there, the last one with the text that stands beside the seal unless it has its own.

    None where the seal is a vendor's own. A damaged carrier holds nothing.
    """
    if not seal.startswith(_CARRIER):
        return None
    try:
        details = [dict(each) for each in objects(from_json(urlsafe_b64decode(seal.removeprefix(_CARRIER))))]
    except (binascii.Error, ValueError):
        return []
    if details and not text_of_detail(details[-1]):
        details[-1] = with_text(details[-1], said)
    return details


def text_of_detail(detail: Mapping[str, Any]) -> str:
    return text(detail.get("text")) or text(detail.get("summary"))


def with_text(detail: Mapping[str, Any], said: str) -> Detail:
    """The detail with the text that it seals, where its kind has one."""
    kind = detail.get("type")
    if kind == "reasoning.text":
        return {**detail, "text": said}
    return {**detail, "summary": said} if said else dict(detail)
