"""Plain JSON values, read leniently: what has another type than it should counts as not given.

Bodies come from any client and any server, so nothing is taken for granted. Where a field cannot be done without, the
reader that needs it raises InvalidRequest itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, NoReturn, cast

import msgspec

from kvstet.errors import InvalidRequest

Object = Mapping[str, Any]
"""A JSON object."""

_EMPTY: Object = {}

_MAX_INTEGER = 2**53
"""Up to here, every JSON library means the same."""


def obj(value: object) -> Object:
    """The object, or an empty one."""
    return cast("Object", value) if isinstance(value, Mapping) else _EMPTY


def items(value: object) -> Sequence[object]:
    """The list, or an empty one."""
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else ()


def objects(value: object) -> list[Object]:
    """Those of a list that are objects."""
    return [cast("Object", item) for item in items(value) if isinstance(item, Mapping)]


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def optional_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def integer(value: object) -> int | None:
    """A whole number of at least 0; JavaScript's 3.0 is one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value <= _MAX_INTEGER and value == int(value) else None


def number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # Beyond what a float holds, an integer is as absurd as infinity.
    return value if abs(value) < 1e300 else None


def boolean(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def present(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that are None."""
    return {name: value for name, value in fields.items() if value is not None}


def unread(fields: Object, known: Iterable[str], prefix: str = "") -> list[str]:
    """Names of the fields that nobody reads; null says nothing, so nothing is lost with it."""
    return [f"{prefix}{name}" for name, value in fields.items() if value is not None and name not in known]


def to_json(value: object) -> str:
    """As compact JSON, integers of any size. InvalidRequest where it is nested too deeply or is no JSON at all."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, from a client that cuts strings at any UTF-16 unit. As an escape it can be sent.
        return json.dumps(value, separators=(",", ":"))
    except (RecursionError, TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"A value of the request cannot be written as JSON: {error}.") from None


def from_json(data: str | bytes) -> object:
    """Raises ValueError where it is no JSON, nested too deeply, or has a number that cannot be held."""
    try:
        return cast("object", msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeError):
        return _from_json_with_surrogates(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def body_of(data: bytes) -> dict[str, Any]:
    """A request's or reply's body. InvalidRequest where it is no JSON object."""
    try:
        value = from_json(data)
    except ValueError as error:
        raise InvalidRequest(f"The body is not valid JSON in UTF-8: {error}.") from None
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return cast("dict[str, Any]", value)


def _from_json_with_surrogates(data: str | bytes) -> object:
    try:
        return cast("object", json.loads(data, parse_constant=_no_number, parse_float=_finite))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _finite(digits: str) -> float:
    return value if isfinite(value := float(digits)) else _no_number(digits)


def _no_number(digits: str) -> NoReturn:
    raise ValueError(f"{digits[:20]} is no number that can be held")
