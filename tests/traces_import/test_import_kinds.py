"""Which client a file is of, and what is said about files of none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.traces_import.real_sessions import KINDS_BY_FILE, OPENCODE, PI, content, unpacked, written

from kvstet.errors import InvalidRequest
from kvstet.traces.format import Header
from kvstet.traces.importing.importers import KINDS, import_file


@pytest.mark.parametrize("name", KINDS_BY_FILE)
def test_no_file_is_taken_for_another_clients(name: str, tmp_path: Path):
    path = unpacked(name, tmp_path)
    for kind in KINDS:
        try:
            lines = [line for line in import_file(path, kind) if not isinstance(line, Header)]
        except InvalidRequest:
            continue
        assert bool(lines) == (kind == KINDS_BY_FILE[name])


@pytest.mark.parametrize(
    "entry",
    [
        {"request": {"model": "m", "messages": []}, "response": {}},
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {}},
        {"log": {"version": "1.2", "entries": []}},
    ],
)
def test_logs_are_recognised(entry: object, tmp_path: Path):
    assert import_file(written(tmp_path / "log.jsonl", entry)).kind == "openai-logs"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "Hello.",
        "[1, 2]",
        '{"a": 1}',
        "null",
        '{"type": "user"}\n',
        '{"type": [], "uuid": {}}',
        "\ufeff{",
        "\0",
    ],
)
def test_a_file_of_no_client_is_told_so(text: str, tmp_path: Path):
    path = tmp_path / "unknown.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=r"unknown\.jsonl"):
        import_file(path)


def test_so_are_folders_databases_and_files_that_are_not_there(tmp_path: Path):
    import sqlite3

    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE session (id)").connection.close()
    for path in (tmp_path, tmp_path / "other.db", tmp_path / "nowhere.jsonl"):
        with pytest.raises(InvalidRequest, match=path.name):
            list(import_file(path))


def test_there_are_only_kinds_that_there_are(tmp_path: Path):
    with pytest.raises(InvalidRequest, match="'cursor'; there are claude-code, codex, pi, opencode"):
        import_file(written(tmp_path / "log.jsonl", {"messages": []}), "cursor")


def test_packed_files_are_unpacked(tmp_path: Path):
    import lzma

    packed = tmp_path / "session.jsonl.xz"
    packed.write_bytes(lzma.compress(content(PI.format("session"))))
    plain = unpacked(PI.format("session"), tmp_path)
    assert list(import_file(packed)) == list(import_file(plain))


def test_a_folder_of_opencode_stands_for_its_database(tmp_path: Path):
    unpacked(OPENCODE.format("session"), tmp_path).rename(tmp_path / "opencode.db")
    assert list(import_file(tmp_path)) == list(import_file(tmp_path / "opencode.db"))


def test_lines_are_made_while_they_are_asked_for(tmp_path: Path):
    lines = import_file(unpacked(PI.format("session"), tmp_path))
    assert repr(lines) == "Imported('pi', passed_over={})"
    assert isinstance(next(lines), Header)
    assert len(list(lines)) == 16


def test_what_is_passed_over_is_counted_by_reason(tmp_path: Path):
    path = unpacked(PI.format("session"), tmp_path)
    with path.open("a") as file:
        file.write(json.dumps({"type": "hologram", "id": "x"}) + "\n" + '{"type": "mess')
    lines = import_file(path)
    assert len(list(lines)) == 17
    assert lines.passed_over == {"an entry of type hologram": 1, "not a JSON object": 1}
