from __future__ import annotations

import logging

import pytest

from kvstet.llama.library import LibraryLog, build_id, initialize

DEBUG, INFO, WARN, ERROR, CONTINUED = 1, 2, 3, 4, 5


def test_log_lines_reach_the_logger_whole(caplog: pytest.LogCaptureFixture) -> None:
    log = LibraryLog()
    with caplog.at_level(logging.DEBUG, "kvstet.llama"):
        log.receive(INFO, b"loading ", None)
        log.receive(CONTINUED, b"tensors\nand ", None)
        log.receive(WARN, b"more\n\n", None)
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.DEBUG, "loading tensors"),
        (logging.WARNING, "and more"),
    ]


def test_a_line_that_is_not_utf8_is_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    LibraryLog().receive(ERROR, b"caf\xe9\n", None)
    assert caplog.messages == ["caf\N{REPLACEMENT CHARACTER}"]


def test_error_lines_are_collected_inside_the_block_only() -> None:
    log = LibraryLog()
    log.receive(ERROR, b"before\n", None)
    with log.errors() as outer, log.errors() as inner:
        log.receive(ERROR, b"bad file\n", None)
        log.receive(INFO, b"fine\n", None)
    log.receive(ERROR, b"after\n", None)
    assert outer == inner == ["bad file"]


def test_nothing_is_raised_into_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    log = LibraryLog()
    monkeypatch.setattr(logging.getLogger("kvstet.llama"), "log", interrupt)
    log.receive(ERROR, b"line\n", None)
    assert isinstance(log.take_interrupt(), KeyboardInterrupt)
    assert log.take_interrupt() is None


def test_the_build_is_identified_with_its_state_formats() -> None:
    initialize()
    for part in ("llama_cpp_python 0.3.", "llama.cpp ", "session ", "sequence "):
        assert part in build_id()
