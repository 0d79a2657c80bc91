"""What went wrong, in any dialect: statuses, and the sentences by which clients know a prompt that is too long."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kvstet.dialects.reply import Failure
from kvstet.dialects.values import from_json, obj, text
from kvstet.errors import (
    ContextOverflow,
    DeadlineExceeded,
    KvstetError,
    QueueFull,
    RequestError,
    Unavailable,
    UnknownModel,
)

OVERFLOW = "context_length_exceeded"
"""OpenAI's code; every client knows it, or looks for Anthropic's sentence."""

UNREADABLE_STATUS = 502
"""What the upstream sent makes no sense."""

ANTHROPIC_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""From Anthropic's documentation ("Errors")."""

OPENAI_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}

STATUSES: Mapping[str, int] = {
    **{type: status for status, type in ANTHROPIC_TYPES.items()},
    "server_error": 500,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_is_overloaded": 503,
    "slow_down": 503,
    "invalid_prompt": 400,
    OVERFLOW: 400,
}
"""Of the types and codes by which an error in the middle of a stream is known, since it has no status."""

_ANTHROPIC_OVERFLOW = re.compile(
    r"prompt is too long(?:: *([\d,]{1,15}) tokens > ([\d,]{1,15}) maximum)?", re.IGNORECASE
)
_OPENAI_LIMIT = re.compile(
    r"(?:maximum context length is|context (?:size|window) (?:is|of)) ([\d,]{1,15})", re.IGNORECASE
)
_OPENAI_PROMPT = re.compile(r"(?:resulted in|prompt has|requested) ([\d,]{1,15}) tokens", re.IGNORECASE)
_LLAMA_OVERFLOW = re.compile(
    r"request \(([\d,]{1,15}) tokens\) exceeds the available context size \(([\d,]{1,15}) tokens\)", re.IGNORECASE
)
"""llama-server's."""
_MAX_QUOTED_CHARS = 500


def failure_of(error: KvstetError) -> Failure:
    """An error of our own, to be told in a client's dialect."""
    if isinstance(error, ContextOverflow):
        overflow = (error.num_prompt_tokens, error.max_prompt_tokens)
        return Failure(400, str(error), error.code, error.param, overflow)
    status = _status_of(error)
    code = error.code if isinstance(error, RequestError | Unavailable) else ""
    return Failure(status, str(error), code, error.param if isinstance(error, RequestError) else None)


def unreadable(what: str) -> Failure:
    return Failure(UNREADABLE_STATUS, f"The upstream {what}.", "upstream_error")


def truncated() -> Failure:
    return unreadable("ended its reply before it was finished")


def failure_in(status: int | None, error: object, message: str = "") -> Failure:
    """Of an error object, ``{"type"?, "code"?, "message"?, "param"?}``, in whichever dialect, or of a mere text.

    ``status`` None: it came in the middle of a stream.
    """
    fields = obj(error)
    told = text(fields.get("message")) or text(error) or message or "The upstream failed and did not say why."
    code = fields.get("code")
    names = [text(code), text(fields.get("type"))]
    found = status or next((STATUSES[name] for name in names if name in STATUSES), None) or _as_status(code) or 500
    return _with_overflow(Failure(found, told, names[0], text(fields.get("param")) or None))


def failure_in_body(status: int, body: bytes) -> Failure:
    """Of a response's body: the envelopes of OpenAI, Anthropic and their imitators, or any text."""
    try:
        value = from_json(body)
    except ValueError:
        said = body[: 4 * _MAX_QUOTED_CHARS].decode(errors="replace").strip()[:_MAX_QUOTED_CHARS]
        return failure_in(status, None, said or f"The upstream answered {status} and nothing else.")
    fields = obj(value)
    # FastAPI's servers say ``detail``, vLLM's older ones and Mistral put the fields at the top.
    error = fields.get("error") or fields.get("detail") or fields
    return failure_in(status, error, f"The upstream answered {status}.")


def openai_error(failure: Failure) -> dict[str, Any]:
    """The envelope of both of OpenAI's dialects, in bodies and in streams."""
    kind = OPENAI_TYPES.get(failure.status, _by_class(failure.status, "server_error"))
    error = {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code or None}
    return {"error": error}


def anthropic_error(failure: Failure) -> dict[str, Any]:
    """Anthropic's envelope, in bodies and in streams."""
    by_class = "overloaded_error" if failure.status == 503 else _by_class(failure.status, "api_error")
    kind = ANTHROPIC_TYPES.get(failure.status, by_class)
    return {"type": "error", "error": {"type": kind, "message": _anthropic_message(failure)}}


def _anthropic_message(failure: Failure) -> str:
    """Claude Code and others read the numbers out of this very sentence, and shorten their history by them."""
    if failure.overflow is not None:
        return "prompt is too long: {} tokens > {} maximum".format(*failure.overflow)
    if failure.code == OVERFLOW and not _ANTHROPIC_OVERFLOW.search(failure.message):
        return f"prompt is too long: {failure.message}"
    return failure.message


def _by_class(status: int, of_server: str) -> str:
    return of_server if status >= 500 else "invalid_request_error"


def _with_overflow(failure: Failure) -> Failure:
    """Known by its code or its sentence; the numbers are in the sentence, if anywhere."""
    match = _ANTHROPIC_OVERFLOW.search(failure.message) or _LLAMA_OVERFLOW.search(failure.message)
    if failure.code != OVERFLOW and match is None:
        return failure
    limit, prompt = _OPENAI_LIMIT.search(failure.message), _OPENAI_PROMPT.search(failure.message)
    pair = (match[1], match[2]) if match and match[1] else (prompt[1], limit[1]) if limit and prompt else None
    overflow = None if pair is None else (_count(pair[0]), _count(pair[1]))
    return Failure(failure.status, failure.message, OVERFLOW, failure.param, overflow)


def _count(digits: str) -> int:
    return int(digits.replace(",", "") or 0)


def _as_status(code: object) -> int | None:
    """Some servers give the status as the code: OpenRouter as a number."""
    return code if isinstance(code, int) and not isinstance(code, bool) and 400 <= code < 600 else None


def _status_of(error: KvstetError) -> int:
    match error:
        case UnknownModel():
            return 404
        case RequestError():
            return 400
        case QueueFull():
            return 429
        case DeadlineExceeded():
            return 504
        case Unavailable():
            return 503
        case _:
            return 500
