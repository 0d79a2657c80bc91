"""Keys in what clients send: taken out of everything that is recorded, always.

Header fields and parameters are known by their names; values that look like a key are taken out wherever they stand in
one. Of a body, fields that are there for a key (an MCP server's ``authorization_token``) lose their value.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from kvstet.traces.format import Line, Plan, Request, Response

REDACTED = "[redacted]"

_KEY_NAME = re.compile(
    r"authori[sz]ation|api[-_]?key|token|secret|cookie|password|passwd|credential|signature|^key$|-key$|^x-amz-", re.I
)
_NO_KEYS = frozenset({"idempotency-key", "x-idempotency-key", "sec-websocket-key"})
_PARAMETER = re.compile(
    r"([?&](?:key|[\w-]*api[-_]?key|[\w-]*token|[\w-]*secret|[\w-]*signature|sig|password|code)=)[^&#\s\"']+", re.I
)
_SCHEME = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{6,}", re.I)
_KEY = re.compile(r"\b(?:sk|pk|rk)-[\w-]{16,}|\bAIza[\w-]{30,}|\bgh[pousr]_\w{20,}|\bxox[abprs]-[\w-]{10,}")
_FIELD = re.compile(
    r'((?<!\\)"(?:[\w-]*api[-_]?key|authorization(?:_token)?|access_token|refresh_token|client_secret)"\s*:\s*")'
    r'(?:[^"\\]|\\.)+(?=")',
    re.I,
)


def without_keys(line: Line) -> Line:
    """The line, with what carries a key replaced by `REDACTED`."""
    match line:
        case Request():
            headers = headers_without_keys(line.headers)
            return msgspec.structs.replace(
                line, path=path_without_keys(line.path), headers=headers, body_raw=json_without_keys(line.body_raw)
            )
        case Response(plan=Plan() as plan):
            calls = [msgspec.structs.replace(call, args_raw=json_without_keys(call.args_raw)) for call in plan.calls]
            return msgspec.structs.replace(line, plan=msgspec.structs.replace(plan, calls=calls))
        case _:
            return line


def headers_without_keys(headers: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """In their order, with their names."""
    return [(name, REDACTED if is_key(name) else _value_without_keys(value)) for name, value in headers]


def is_key(name: str) -> bool:
    """Whether a header field of this name carries one."""
    return name.lower() not in _NO_KEYS and _KEY_NAME.search(name) is not None


def path_without_keys(path: str) -> str:
    """A path with its query."""
    return _PARAMETER.sub(rf"\1{REDACTED}", path)


def json_without_keys(text: str) -> str:
    """JSON as it was sent, or cut off."""
    return _FIELD.sub(rf"\1{REDACTED}", text)


def _value_without_keys(value: str) -> str:
    return _KEY.sub(REDACTED, _SCHEME.sub(rf"\1 {REDACTED}", path_without_keys(value)))
