from __future__ import annotations

import json

import pytest

from kvstet.dialects.dialect import dialect_named
from kvstet.dialects.failures import failure_in_body, failure_of
from kvstet.dialects.reply import Failure
from kvstet.errors import (
    ContextOverflow,
    DeadlineExceeded,
    DiskUnavailable,
    InvalidRequest,
    KvstetError,
    QueueFull,
    ShuttingDown,
    UnknownModel,
)

OVERFLOW = "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (b'{"error": {"message": "No.", "type": "invalid_request_error", "code": "bad"}}', "No.", "bad"),
        (b'{"type": "error", "error": {"type": "invalid_request_error", "message": "No."}}', "No.", ""),
        (b'{"error": "No."}', "No.", ""),
        (b'{"object": "error", "message": "No.", "code": 400}', "No.", ""),
        (b'{"detail": "No."}', "No.", ""),
        (b"<html>No.</html>", "<html>No.</html>", ""),
        (b"", "The upstream answered 400 and nothing else.", ""),
        (b"[1]", "The upstream answered 400.", ""),
        (b"\xff\xfe", "\ufffd\ufffd", ""),
    ],
)
def test_any_body_of_an_error_is_read(body: bytes, message: str, code: str) -> None:
    assert failure_in_body(400, body) == Failure(400, message, code)


@pytest.mark.parametrize(
    ("message", "code", "overflow"),
    [
        ("prompt is too long: 210000 tokens > 200000 maximum", "", (210_000, 200_000)),
        (
            "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.",
            OVERFLOW,
            (9000, 8192),
        ),
        ("Your input exceeds the context window of this model.", OVERFLOW, None),
        (
            "request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it",
            "exceed_context_size_error",
            (9000, 8192),
        ),
    ],
)
def test_a_prompt_that_is_too_long_is_known(message: str, code: str, overflow: tuple[int, int] | None) -> None:
    body = json.dumps({"error": {"message": message, "code": code}}).encode()
    failure = failure_in_body(400, body)
    assert (failure.code, failure.overflow) == (OVERFLOW, overflow)
    told = dialect_named("messages").write_error(failure)["error"]["message"]
    assert told.startswith("prompt is too long: ")
    if overflow:
        assert told == "prompt is too long: {} tokens > {} maximum".format(*overflow)
    assert dialect_named("responses").write_error(failure)["error"]["code"] == OVERFLOW


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (InvalidRequest("No.", param="messages"), 400, "invalid_request_error"),
        (ContextOverflow(num_prompt_tokens=9, max_prompt_tokens=8), 400, "invalid_request_error"),
        (UnknownModel("No."), 404, "not_found_error"),
        (QueueFull("No."), 429, "rate_limit_error"),
        (ShuttingDown("No."), 503, "overloaded_error"),
        (DeadlineExceeded("No."), 504, "timeout_error"),
        (DiskUnavailable("No."), 500, "api_error"),
    ],
)
def test_our_own_errors_are_told_in_every_dialect(error: KvstetError, status: int, kind: str) -> None:
    failure = failure_of(error)
    assert failure.status == status
    assert dialect_named("messages").write_error(failure)["error"]["type"] == kind
    for name in ("chat", "responses"):
        told = dialect_named(name).write_error(failure)["error"]
        assert told["message"] == str(error)
        assert told["param"] == getattr(error, "param", None)


@pytest.mark.parametrize(
    ("event", "status"),
    [
        ({"type": "overloaded_error", "message": "m"}, 529),
        ({"code": "rate_limit_exceeded", "message": "m"}, 429),
        ({"code": 503, "message": "m"}, 503),
        ({"message": "m"}, 500),
        ("m", 500),
    ],
)
def test_an_error_in_a_stream_has_the_status_that_it_would_have_had(event: object, status: int) -> None:
    reader = dialect_named("chat").reply_reader()
    (failure,) = reader.whole({"error": event})
    assert isinstance(failure, Failure)
    assert (failure.status, failure.message) == (status, "m")
    assert reader.is_complete
