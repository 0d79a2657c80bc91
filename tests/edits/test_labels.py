"""Recorded sessions of real clients: what is said of each request is what was found by hand, and no more."""

from __future__ import annotations

import pytest
from tests.edits.labels import NAMES, TRACES, label_of, labels

from kvstet.cli.recordings import read_recording
from kvstet.edits.history import History


@pytest.mark.parametrize("name", NAMES)
def test_every_request_gets_its_label(name: str):
    expected, history = labels(name), History()
    numbers: set[int] = set()
    for request in read_recording(TRACES / f"{name}.jsonl.xz"):
        place = history.note(request.snapshot)
        if request.reply is not None:
            history.reply(place.branch, request.reply)
        wanted = expected.get(request.number, {"edits": []})["edits"]
        assert [label_of(edit) for edit in place.edits] == wanted, f"request {request.number} ({request.label})"
        numbers.add(request.number)
    assert expected.keys() <= numbers


def test_five_clients_and_more_are_labelled():
    assert {name.partition("-")[0] for name in NAMES} >= {"claude", "codex", "opencode", "pi", "qwen"}
