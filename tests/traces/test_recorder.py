"""The file that a trace is written into (`kvstet.traces.recorder`)."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvstet.errors import InvalidRequest
from kvstet.traces import recorder as module
from kvstet.traces.answers import Answer
from kvstet.traces.format import Header
from kvstet.traces.reading import read_lines, read_trace
from kvstet.traces.recorder import Recorder, TraceFile, file_in

CHAT = "/v1/chat/completions"


@contextmanager
def recorder(path: Path) -> Iterator[Recorder]:
    made = Recorder(path, "serve")
    try:
        yield made
    finally:
        made.close()


def test_a_folder_gets_a_new_private_file_each_time(tmp_path: Path):
    folder = tmp_path / "traces" / "mine"
    with recorder(folder) as one, recorder(folder) as two:
        assert one.path != two.path and {one.path.parent, two.path.parent} == {folder}
        assert {path.stat().st_mode & 0o777 for path in (one.path, two.path)} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_file_is_what_has_a_suffix_or_is_one(tmp_path: Path):
    (tmp_path / "plain").touch()
    assert file_in(tmp_path / "new.jsonl", "serve") == tmp_path / "new.jsonl"
    assert file_in(tmp_path / "plain", "serve") == tmp_path / "plain"
    assert file_in(tmp_path, "serve").parent == tmp_path
    with pytest.raises(InvalidRequest, match="packed when it is complete"):
        file_in(tmp_path / "new.jsonl.xz", "serve")


def test_a_file_is_gone_on_with_and_read_as_two_traces(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    for text in ("one", "two"):
        with recorder(path) as made:
            seq = made.begin("POST", CHAT, [], text.encode())
            made.end(seq, Answer(CHAT, 400, content=text.encode()))
        with path.open("ab") as torn:
            torn.write(b'{"dir": "requ')
    assert sum(isinstance(line, Header) for line in read_lines(path)) == 2
    found = [(each.request.body_raw, each.response and each.response.error_raw) for each in read_trace(path)]
    assert found == [("one", "one"), ("two", "two")]


def test_a_file_has_one_writer(tmp_path: Path):
    with recorder(tmp_path / "a.jsonl"), pytest.raises(InvalidRequest, match="Another process records into"):
        Recorder(tmp_path / "a.jsonl", "serve")


def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "folder", tmp_path / "none" / "a.jsonl"):
        with pytest.raises(InvalidRequest, match="Cannot record into"):
            Recorder(path, "serve")


def test_of_a_line_for_which_there_is_no_room_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, write = TraceFile(tmp_path / "a.jsonl"), os.write
    file.write(b"whole")
    room = [3]

    def short_write(number: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = write(number, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(module.os, "write", short_write)
    with pytest.raises(OSError, match="No space left"):
        file.write(b"much too long")
    room[0] = 100
    file.write(b"again")
    file.close()
    assert (tmp_path / "a.jsonl").read_bytes() == b"whole\nagain\n"


def test_what_waits_too_long_is_lost_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 10)
    with caplog.at_level(logging.WARNING), recorder(tmp_path / "a.jsonl") as made:
        for _ in range(3):
            made.end(made.begin("POST", CHAT, [], b"x" * 11), Answer(CHAT, 200))
        assert made.num_lost == 3
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "too much waits to be written. Requests are served all the same."
    ]
    assert list(read_trace(tmp_path / "a.jsonl")) == []


@pytest.mark.parametrize("content", [b"", b"no JSON", b"\xff\xfe", b'{"choices": [[]]}', b"[" * 100_000])
def test_whatever_was_answered_is_a_line(content: bytes, tmp_path: Path):
    with recorder(tmp_path / "a.jsonl") as made:
        for kind in ("application/json", "text/event-stream", "application/x-ndjson"):
            made.end(made.begin("POST", CHAT, [], content), Answer(CHAT, 200, kind, content))
        made.end(made.begin("POST", CHAT, [], content), Answer(CHAT, 500, "", content))
    assert made.num_lost == 0
    assert [each.response is not None for each in read_trace(tmp_path / "a.jsonl")] == [True] * 4


def test_half_of_a_surrogate_pair_is_written_as_an_escape(tmp_path: Path):
    content = b'{"choices": [{"message": {"role": "assistant", "content": "cut \\ud83d"}}]}'
    with recorder(tmp_path / "a.jsonl") as made:
        made.end(made.begin("POST", CHAT, [], b"{}"), Answer(CHAT, 200, "application/json", content))
    assert made.num_lost == 0 and b"cut \\ud83d" in (tmp_path / "a.jsonl").read_bytes()
    (exchange,) = read_trace(tmp_path / "a.jsonl")
    assert exchange.plan is not None and exchange.plan.text == "cut \ud83d"
