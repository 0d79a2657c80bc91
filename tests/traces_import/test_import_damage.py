"""Files that are cut off, or hold anything: what can be read is read, and nothing but InvalidRequest is ever raised."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.traces_import.real_sessions import EXPORT, KINDS_BY_FILE, content

from kvstet.errors import InvalidRequest
from kvstet.traces.format import Request
from kvstet.traces.importing.importers import KINDS, import_file
from kvstet.traces.reading import read_lines

EVERY = 997
"""Bytes between cuts."""
SMALL = [name for name in KINDS_BY_FILE if "session" in name or name == EXPORT]
TEXTS = [name for name in SMALL if not name.endswith(".db")]


def num_requests(path: Path) -> int | None:
    """None: the file is refused."""
    try:
        return sum(isinstance(line, Request) for line in import_file(path))
    except InvalidRequest:
        return None


@pytest.mark.parametrize("name", SMALL)
def test_a_file_may_be_cut_off_anywhere(name: str, tmp_path: Path):
    path, whole = tmp_path / Path(name).name, content(name)
    counts: list[int | None] = []
    for end in range(0, len(whole), EVERY):
        path.write_bytes(whole[:end])
        counts.append(num_requests(path))
    path.write_bytes(whole)
    complete = num_requests(path)
    assert complete
    if name.endswith(".jsonl"):
        # The longer the file, the more is in it.
        known = [count for count in counts if count is not None]
        assert known == sorted(known)
        assert set(known) >= set(range(complete))
        assert counts.index(known[0]) < 30
    elif not name.endswith(".db"):
        assert set(counts) == {None}


def everything() -> st.SearchStrategy[Any]:
    plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8)
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        max_leaves=6,
    )


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of all values within one."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    if isinstance(value, list):
        for place, inner in enumerate(value):
            yield from places(inner, (*path, place))


def replaced(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    if not path:
        return other
    first, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {**value, first: replaced(value[first], rest, other)}
    return [*value[:first], replaced(value[first], rest, other), *value[first + 1 :]]


def entries(name: str) -> list[Any]:
    text = content(name)
    return [json.loads(line) for line in text.splitlines()] if name.endswith(".jsonl") else [json.loads(text)]


@pytest.mark.parametrize("name", TEXTS)
@settings(max_examples=30)
@given(data=st.data())
def test_any_value_of_a_file_may_be_anything(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory):
    whole, seed = ENTRIES.setdefault(name, entries(name)), data.draw(st.integers(0, 2**32))
    chance = random.Random(seed)
    for other in data.draw(st.lists(everything(), min_size=1, max_size=5)):
        number = chance.randrange(len(whole))
        whole = replaced(whole, (number, *chance.choice(list(places(whole[number])))), other)
    path = tmp_path_factory.getbasetemp() / f"absurd-{Path(name).name}"
    path.write_bytes(b"\n".join(msgspec.json.encode(entry) for entry in whole))
    num_requests(path)


ENTRIES: dict[str, list[Any]] = {}


@settings(max_examples=60)
@given(lines=st.lists(everything(), max_size=4), kind=st.sampled_from(KINDS))
def test_a_file_of_anything_is_refused_or_empty(lines: list[Any], kind: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.getbasetemp() / "anything.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))
    try:
        assert not [line for line in import_file(path, kind) if isinstance(line, Request)]
    except InvalidRequest:
        return


TYPES = [
    "user",
    "assistant",
    "system",
    "api-request",
    "api-request-shape",
    "api-request-blob",
    "response_item",
    "event_msg",
]
TYPES += [
    "compacted",
    "turn_context",
    "session_meta",
    "session",
    "message",
    "compaction",
    "context_edit",
    "token_usage_record",
]
NAMES = [
    "message",
    "payload",
    "uuid",
    "parentUuid",
    "id",
    "parentId",
    "content",
    "role",
    "requestRef",
    "tail",
    "base",
    "info",
]
NAMES += [
    "messages",
    "history",
    "trajectory",
    "request",
    "response",
    "body",
    "custom_id",
    "firstKeptEntryId",
    "targetId",
]
WORDS = [
    "assistant",
    "user",
    "tool_use",
    "tool_result",
    "thinking",
    "toolCall",
    "function_call",
    "a",
    "b",
    "token_count",
]


def familiar() -> st.SearchStrategy[Any]:
    """With the words of clients, in any order: ids that lead round in a circle among them."""
    values = st.sampled_from(WORDS) | st.integers(-1, 3) | st.none()
    inner = st.recursive(
        values,
        lambda each: st.lists(each, max_size=2) | st.dictionaries(st.sampled_from([*NAMES, "type"]), each, max_size=4),
        max_leaves=8,
    )
    return st.builds(
        lambda kind, fields: {**fields, "type": kind},
        st.sampled_from(TYPES),
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    )


@settings(max_examples=100)
@given(lines=st.lists(familiar(), max_size=6), kind=st.sampled_from(KINDS))
def test_known_words_in_any_order_are_refused_or_read(
    lines: list[Any], kind: str, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.getbasetemp() / "familiar.jsonl"
    path.write_bytes(b"\n".join(msgspec.json.encode(line) for line in lines))
    try:
        written = [msgspec.json.encode(line) for line in import_file(path, kind)]
    except InvalidRequest:
        return
    path.write_bytes(b"\n".join(written))
    assert len(list(read_lines(path))) == len(written)
