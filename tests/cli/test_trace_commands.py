"""``kvstet trace``: what is shown of a trace, and what is taken out of it."""

from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
from tests.edits.labels import TRACES

from kvstet.cli.main import main
from kvstet.traces.format import Header, Request
from kvstet.traces.reading import read_lines, read_trace

PI = TRACES / "pi.jsonl.xz"


def trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["kvstet", "trace", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_what_is_in_a_trace_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    status, text, _ = trace(capsys, monkeypatch, "show", PI)
    assert status == 0
    num_calls = sum(len(each.plan.calls) for each in read_trace(PI) if each.plan is not None)
    lines = [line.split() for line in text.splitlines()]
    assert lines[0][:3] == ["19", "requests", "in"]
    (row,) = [line for line in lines if "chat" in line]
    assert row[1:6] == ["chat", "local-coder", "19", "19", str(num_calls)]


def test_what_is_passed_over_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "a.jsonl").write_text('{"dir": "header", "kvstet_trace": 1, "by": "[me]"}\n{"torn')
    status, text, _ = trace(capsys, monkeypatch, "show", tmp_path / "a.jsonl")
    assert status == 0
    assert "Written by [me], unknown time; without keys." in text
    assert "0 requests" in text and "1 line passed over: not a JSON object" in text


def test_keys_alone_are_taken_out_unless_more_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out.jsonl.xz"
    assert trace(capsys, monkeypatch, "redact", PI, "-o", out)[0] == 0
    assert out.stat().st_mode & 0o777 == 0o600
    header, *rest = read_lines(out)
    assert isinstance(header, Header) and header.redacted == "keys"
    before = [line.body_raw for line in read_lines(PI) if isinstance(line, Request)]
    assert [line.body_raw for line in rest if isinstance(line, Request)] == before
    assert b"dummy" not in lzma.decompress(out.read_bytes())


def test_texts_are_taken_out_under_a_key_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    key, outs = tmp_path / "key", [tmp_path / f"{name}.jsonl" for name in "abc"]
    for out in outs[:2]:
        assert trace(capsys, monkeypatch, "redact", PI, "--text", "--key-file", key, "-o", out)[0] == 0
    assert trace(capsys, monkeypatch, "redact", PI, "--text", "-o", outs[2])[0] == 0
    assert outs[0].read_bytes() == outs[1].read_bytes() != outs[2].read_bytes()
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32
    assert key.read_bytes() not in outs[0].read_bytes()
    assert b"pytest" not in outs[2].read_bytes()


def test_standard_output_takes_what_has_no_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    _, text, _ = trace(capsys, monkeypatch, "redact", PI)
    assert [json.loads(line)["dir"] for line in text.splitlines()][:3] == ["header", "request", "response"]


def test_a_short_key_and_a_key_for_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "key").write_bytes(b"short")
    status, _, text = trace(capsys, monkeypatch, "redact", PI, "--text", "--key-file", tmp_path / "key")
    assert status == 1 and "fewer than 32 bytes" in " ".join(text.split())
    status, _, text = trace(capsys, monkeypatch, "redact", PI, "--key-file", tmp_path / "key")
    assert status == 2 and "--text" in text


def test_an_output_stays_as_it_was_where_the_input_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    (tmp_path / "torn.xz").write_bytes(PI.read_bytes()[:-30])
    status, _, text = trace(capsys, monkeypatch, "redact", tmp_path / "torn.xz", "-o", out)
    assert status == 1 and "Cannot read" in text
    assert out.read_text() == "before" and sorted(tmp_path.iterdir()) == [out, tmp_path / "torn.xz"]


def test_a_trace_may_take_its_own_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "a.jsonl.xz"
    path.write_bytes(PI.read_bytes())
    assert trace(capsys, monkeypatch, "redact", path, "--text", "-o", path)[0] == 0
    assert len(list(read_trace(path))) == 19


def test_tokens_are_kvstets_own_count_where_the_stream_told_no_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    account = {"reused": 10, "loaded": 20, "shifted": 0, "computed": 5, "verdict": "Appended."}
    lines = [
        {"dir": "request", "seq": 1, "path": "/v1/chat/completions", "body_raw": '{"model": "m"}'},
        {"dir": "response", "seq": 1, "status": 200, "kvstet": account, "tokens": [1, 2, 3], "first_seconds": 0.5},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, text, _ = trace(capsys, monkeypatch, "show", tmp_path / "a.jsonl")
    (row,) = [line.split() for line in text.splitlines() if " chat " in line]
    assert row == ["?", "chat", "m", "1", "0", "0", "0", "0", "35", "30", "3", "0.50", "s"]
