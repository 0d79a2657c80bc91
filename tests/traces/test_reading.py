"""Traces as they are read (`kvstet.traces.reading`)."""

from __future__ import annotations

import io
import json
import lzma
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from kvstet.errors import InvalidRequest
from kvstet.traces.format import Request
from kvstet.traces.reading import NO_OBJECT, STDIN, UNKNOWN, Exchange, exchanges, line_of, lines_in, read_trace

TRACES = Path(__file__).parents[1] / "data" / "traces"
CHAT = "/v1/chat/completions"
BODY = '{"messages": []}'


def request(seq: int, **fields: Any) -> dict[str, Any]:
    return {"dir": "request", "seq": seq, "path": CHAT, "body_raw": BODY, **fields}


def response(seq: int, **fields: Any) -> dict[str, Any]:
    return {"dir": "response", "seq": seq, "status": 200, **fields}


def read(*entries: dict[str, Any] | bytes, passed_over: Counter[str] | None = None) -> list[Exchange]:
    lines = (entry if isinstance(entry, bytes) else json.dumps(entry).encode() for entry in entries)
    return list(exchanges(lines_in(lines, passed_over)))


def test_answers_find_their_requests_and_requests_keep_their_order():
    found = read(request(1), request(2), response(2, kind="second"), response(1, kind="first"), request(3))
    assert [(each.number, each.label) for each in found] == [(1, "first"), (2, "second"), (3, "")]
    assert found[2].response is None


def test_exchanges_come_as_soon_as_they_are_over():
    given: list[int] = []

    def lines() -> Iterable[bytes]:
        for number in (1, 2):
            given.append(number)
            yield json.dumps(request(number)).encode()
            yield json.dumps(response(number)).encode()

    found = exchanges(lines_in(lines()))
    assert next(iter(found)).number == 1
    assert given == [1]


def test_several_traces_may_follow_each_other():
    header = {"dir": "header", "kvstet_trace": 1}
    found = read(header, request(1), header, request(1), response(1, kind="new"))
    assert [each.label for each in found] == ["", "new"]
    assert [each.label for each in read(request(1), request(1), response(1, kind="new"))] == ["", "new"]


def test_what_is_not_known_is_passed_over():
    passed_over: Counter[str] = Counter()
    found = read(
        request(1, later="field"),
        {"dir": "note", "text": "of a later version"},
        response(9),
        {"dir": "response"},
        {"client": "a header of others"},
        b"",
        b"[1]",
        b'{"dir": "request", "seq": 2, "pa',
        passed_over=passed_over,
    )
    assert [each.number for each in found] == [1]
    assert passed_over == {UNKNOWN: 3, NO_OBJECT: 2}


def test_a_later_version_is_refused():
    with pytest.raises(InvalidRequest, match="version 2, and this kvstet reads version 1"):
        read({"dir": "header", "kvstet_trace": 2})


@pytest.mark.parametrize(
    ("entry", "path", "body"),
    [
        ({"messages": []}, CHAT, {"messages": []}),
        ({"messages": [], "system": "You"}, "/v1/messages", {"messages": [], "system": "You"}),
        ({"input": "Hi"}, "/v1/responses", {"input": "Hi"}),
        ({"body": {"messages": []}, "label": "one"}, CHAT, {"messages": []}),
        ({"body": '{"a": 1}', "path": "/v1/messages?beta=true"}, "/v1/messages", {"a": 1}),
    ],
)
def test_bodies_alone_are_requests_too(entry: dict[str, Any], path: str, body: object):
    (found,) = read({"other": 1}, entry)
    assert (found.number, found.path, found.body) == (2, path, body)
    assert found.label == entry.get("label", "")


@pytest.mark.parametrize(
    ("path", "dialect"),
    [(f"{CHAT}?a=b", "chat"), ("/x/v1/messages", "messages"), ("/v1/messages/count_tokens", None), ("/api/chat", None)],
)
def test_only_requests_for_replies_have_a_dialect(path: str, dialect: str | None):
    (found,) = read(request(1, path=path))
    assert (found.dialect.name if found.dialect else None) == dialect


def test_a_text_of_several_lines_is_no_line():
    assert line_of(b'{"messages": []}\n{"messages": []}', 1) == NO_OBJECT
    assert isinstance(line_of(b'{\n"messages": []\n}\n', 1), Request)


def test_a_body_that_is_no_object_is_an_error_of_its_own():
    (found,) = read(request(1, body_raw="[1]"))
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        _ = found.body


@pytest.mark.parametrize("path", sorted(TRACES.glob("*.xz")), ids=lambda path: path.name)
def test_recorded_sessions_are_read_whole(path: Path):
    entries = [json.loads(line) for line in lzma.decompress(path.read_bytes()).splitlines()]
    num_requests = sum(entry.get("dir", "request") == "request" for entry in entries)
    found = list(read_trace(path))
    assert len(found) == num_requests - sum("client" in entry and "dir" not in entry for entry in entries)
    assert all(each.body for each in found if each.dialect is not None)


def test_standard_input_is_read_packed_or_not(monkeypatch: pytest.MonkeyPatch):
    line = json.dumps(request(1)).encode()
    for data in (line, lzma.compress(line)):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(data))))
        assert [each.number for each in read_trace(STDIN)] == [1]


def test_a_packed_file_that_was_cut_off_is_refused_where_it_ends(tmp_path: Path):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(lzma.compress(b"\n".join(json.dumps(request(n)).encode() for n in range(2000)))[:-20])
    with pytest.raises(InvalidRequest, match="Cannot read"):
        list(read_trace(path))
