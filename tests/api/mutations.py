"""Damaged copies of real requests, as clients with faults, proxies and attackers might send them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, cast

Value = Any
Place = tuple[Any, Any]
"""A list or dict, and the index or key of something in it."""

MAX_TEXT = 200
"""Longer texts of recorded requests are cut: where damage is done matters, not how much text there is."""

_RAW = "\ue000"
"""Marks a string whose content stands in the body as it is, without quotes: what `json` would not write."""

_TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\udc00\ud800",
    "\ud83d",
    "\ufeff\u202e\u0301",
    "👩‍👩‍👧‍👦" * 20,
    "<|im_end|>",
    "<|im_start|>system\n",
    "<think>",
    "</think>",
    "</tool_call>",
    '<tool_call>{"name": "',
    "{{ messages }}{% raise %}",
    '"\\\n\t',
    "a" * 5000,
    "none",
    "null",
    "x.y[0]",
    "../../etc/passwd",
    "%s%n{0}",
)
_NUMBERS = (0, -1, 1, 0.5, -0.0, 2**31 - 1, 2**31, 2**32 - 1, 2**63, -(2**63) - 1, 2**64, 1e308, 5e-324, 10**400)
_RAW_NUMBERS = ("1e999", "-1e999", "NaN", "Infinity", "1" * 5000, "0.1" + "0" * 400, "1E+2", "-0", "1.0", "0123")
_OTHERS = (None, True, False, [], {}, [None], [[]], {"": None}, {"type": None}, {"type": "text"}, ["text"])


@dataclass(frozen=True)
class Sample:
    """A request that is served as it stands."""

    path: str
    body: dict[str, Any]


def mutant(sample: Sample, random: Random) -> bytes:
    """The sample's body with one to four faults."""
    holder = [json.loads(json.dumps(sample.body))]
    for _ in range(random.choice((0, 1, 1, 1, 2, 3, 4))):
        _mutate_value(holder, random)
    body = _encoded(holder[0], random)
    return _damaged(body, random) if random.random() < 0.15 else body


def shortened(value: Value) -> Value:
    """A copy whose texts have at most `MAX_TEXT` characters."""
    match value:
        case str():
            return value if len(value) <= MAX_TEXT else value[: MAX_TEXT // 2] + value[-MAX_TEXT // 2 :]
        case list():
            return [shortened(item) for item in cast("list[Value]", value)]
        case dict():
            return {key: shortened(item) for key, item in cast("dict[str, Value]", value).items()}
        case _:
            return value


def _mutate_value(holder: list[Value], random: Random) -> None:
    places = _places(holder)
    # What stands near the root is rare among all that is nested, and is read most.
    parent, key = random.choice(places[: random.choice((1, 8, 40, len(places)))][-20:] or places)
    if random.random() < 0.4:
        parent, key = random.choice(places)
    random.choice(_CHANGES)(parent, key, random, places)


def _places(holder: list[Value]) -> list[Place]:
    """All there are, breadth first."""
    found: list[Place] = []
    level: list[Value] = [holder]
    while level:
        here = [(parent, key) for parent in level for key in _keys(parent)]
        found += here
        level = [parent[key] for parent, key in here if isinstance(parent[key], list | dict)]
    return found


def _keys(parent: Value) -> list[Any]:
    return list(parent) if isinstance(parent, dict) else list(range(len(parent)))


def _drop(parent: Value, key: Any, random: Random, places: list[Place]) -> None:
    del parent[key]
    if not places[0][0]:
        parent.append({})


def _duplicate(parent: Value, key: Any, random: Random, places: list[Place]) -> None:
    if isinstance(parent, list):
        parent[key:key] = [parent[key]] * random.choice((1, 2, 30))
    else:
        parent[f"{key}{random.choice(('', '_', 's', '2'))}"] = parent[key]


def _retype(parent: Value, key: Any, random: Random, places: list[Place]) -> None:
    parent[key] = random.choice((_text, _number, _other))(random)


def _bend(parent: Value, key: Any, random: Random, places: list[Place]) -> None:
    """Another value of the same type."""
    match parent[key]:
        case bool() as value:
            parent[key] = not value
        case int() | float():
            parent[key] = _number(random)
        case str() as value:
            place = random.randint(0, len(value))
            parent[key] = value[:place] + _text(random).lstrip(_RAW) + value[place:]
        case list() as value:
            random.shuffle(value)
        case dict() as value if value:
            old = random.choice(list(value))
            value[random.choice(_TEXTS)] = value.pop(old)
        case _:
            parent[key] = _other(random)


def _nest(parent: Value, key: Any, random: Random, places: list[Place]) -> None:
    value = parent[key]
    for _ in range(random.choice((1, 1, 2, 60, 101, 180))):
        value = random.choice(
            (lambda v: [v], lambda v: {"a": v}, lambda v: {"type": "object", "properties": {"a": v}})
        )(value)
    parent[key] = value


def _transplant(parent: Value, key: Any, random: Random, places: list[Place]) -> None:
    other, place = random.choice(places)
    parent[key] = json.loads(json.dumps(other[place]))


def _swap(parent: Value, key: Any, random: Random, places: list[Place]) -> None:
    if places[0][0] is not parent:
        other = random.choice(_keys(parent))
        parent[key], parent[other] = parent[other], parent[key]


_CHANGES: tuple[Callable[[Value, Any, Random, list[Place]], None], ...] = (
    _drop,
    _drop,
    _duplicate,
    _retype,
    _retype,
    _bend,
    _bend,
    _bend,
    _nest,
    _transplant,
    _swap,
)


def _text(random: Random) -> str:
    return random.choice(_TEXTS)


def _number(random: Random) -> Value:
    return random.choice(_NUMBERS) if random.random() < 0.7 else _RAW + random.choice(_RAW_NUMBERS)


def _other(random: Random) -> Value:
    return json.loads(json.dumps(random.choice(_OTHERS)))


def _encoded(value: Value, random: Random) -> bytes:
    escapes = random.random() < 0.8
    text = json.dumps(value, ensure_ascii=escapes)
    mark = json.dumps(_RAW, ensure_ascii=escapes).strip('"')
    for raw in _RAW_NUMBERS:
        text = text.replace(f'"{mark}{raw}"', raw)
    return text.encode(errors="surrogatepass")


def _damaged(body: bytes, random: Random) -> bytes:
    """Faults of the bytes, which mostly leave no JSON."""
    start, stop = sorted((random.randrange(len(body) + 1), random.randrange(len(body) + 1)))
    head, tail = body[:start], body[start:]
    kinds = (
        head,
        head + body[min(stop, start + 10) :],
        body[:stop] + tail,
        head + random.randbytes(random.randint(1, 5)) + tail,
        head + random.choice((b"[", b'{"a":', b'"')) * 20_000 + tail,
        b"\xef\xbb\xbf" + body,
        head + bytes(byte ^ (1 << random.randrange(8)) for byte in tail[:2]) + tail[2:],
    )
    return random.choice(kinds)
