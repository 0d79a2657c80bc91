"""JSON of others, looked at without trust: what has another type than it should counts as not there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast


def list_of(value: object) -> list[Any]:
    """The value where it is a list; else none."""
    return cast("list[Any]", value) if isinstance(value, list) else []


def mapping_of(value: object) -> Mapping[str, Any]:
    """The value where it is an object; else an empty one."""
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
