"""What of a trace is replayed, and at which pace."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.api.traces import FOLDER
from tests.replay.replay_harness import PLAN, SYSTEM, TASK, chat, exchange, recorded

from kvstet.cli.replay import pace_of
from kvstet.errors import InvalidRequest
from kvstet.replay.session import Pace, read_session, session_of


def test_a_pause_is_from_the_last_response_to_the_request():
    assert [turn.pause_seconds for turn in recorded().turns] == [0.0, 0.5, 10.0]


def test_a_request_that_came_before_a_response_was_over_waits_for_nothing():
    body = chat([SYSTEM, TASK])
    turns = session_of(
        [exchange(1, body, sent=1, over=9), exchange(2, body, sent=2, over=3), exchange(3, body, sent=10)]
    )
    assert [turn.pause_seconds for turn in turns.turns] == [0.0, 0.0, 1.0]


def test_a_pace_caps_pauses_or_makes_them_all_the_same():
    turns = recorded().turns
    assert [Pace(max_seconds=2.0).pause_before(turn) for turn in turns] == [0.0, 0.5, 2.0]
    assert [Pace(0.25).pause_before(turn) for turn in turns] == [0.25, 0.25, 0.25]


def test_gaps_are_recorded_none_or_seconds():
    assert pace_of("recorded", 5.0) == Pace(None, 5.0)
    assert pace_of("none") == Pace(0.0)
    assert pace_of("90", 60.0) == Pace(90.0)
    for gap in ("soon", "-1", "inf", "nan"):
        with pytest.raises(InvalidRequest, match="--gap"):
            pace_of(gap)


def test_what_asks_for_no_reply_is_left_out_and_told():
    session = session_of(
        [
            exchange(1, {"model": "m", "messages": []}, path="/v1/messages/count_tokens"),
            exchange(2, "{", path="/v1/chat/completions"),
            exchange(3, chat([SYSTEM, TASK]), PLAN),
        ]
    )
    assert [turn.number for turn in session.turns] == [3]
    assert sum(session.skipped.values()) == 2
    assert session.skipped["/v1/messages/count_tokens is none of Chat Completions, Messages and Responses"] == 1


def test_headers_that_name_the_session_are_sent_again_and_keys_are_not():
    headers = [("X-Claude-Code-Session-Id", "s"), ("anthropic-version", "v"), ("authorization", "k"), ("Host", "h")]
    (turn,) = session_of([exchange(1, chat([TASK]), headers=headers)]).turns
    assert turn.headers == {"X-Claude-Code-Session-Id": "s", "anthropic-version": "v"}


def test_a_file_is_read_as_far_as_it_is_wanted():
    assert len(read_session(FOLDER / "pi.jsonl.xz", max_turns=5).turns) == 5


def test_a_file_that_holds_nothing_says_so(tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("{}\n")
    with pytest.raises(InvalidRequest, match=r"Nothing in .* can be replayed"):
        read_session(tmp_path / "empty.jsonl")
    with pytest.raises(InvalidRequest, match="Cannot read"):
        read_session(tmp_path / "missing.jsonl")
