"""How each dialect says what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response

Envelope = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """What a client is told about an error."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after_seconds: float | None = None
    overflow: tuple[int, int] | None = None
    """Tokens of a prompt that is too long, and how many it may have."""

    def envelope(self, path: str) -> Envelope:
        """In the words of the dialect that lives at a path."""
        return envelope_for(path)(self)

    def response(self, path: str, headers: dict[str, str] | None = None) -> Response:
        headers = dict(headers or {})
        if self.retry_after_seconds is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after_seconds)))
        return json_response(self.envelope(path), status=self.status, headers=headers)


def json_response(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def envelope_for(path: str) -> Callable[[ErrorAnswer], Envelope]:
    """The one of the dialect that lives at a path."""
    if path.startswith("/v1/messages"):
        return anthropic_envelope
    if path.startswith("/api/"):
        return ollama_envelope
    return openai_envelope


def openai_envelope(answer: ErrorAnswer) -> Envelope:
    return {
        "error": {"message": answer.message, "type": answer.type, "param": answer.param, "code": answer.code},
    }


def anthropic_envelope(answer: ErrorAnswer) -> Envelope:
    kind = _ANTHROPIC_TYPES.get(answer.status, "api_error" if answer.status >= 500 else "invalid_request_error")
    message = answer.message
    if answer.overflow is not None:
        # Claude Code reads the numbers out of this very sentence, and shortens its history by them.
        message = "prompt is too long: {} tokens > {} maximum".format(*answer.overflow)
    return {"type": "error", "error": {"type": kind, "message": message}}


def ollama_envelope(answer: ErrorAnswer) -> Envelope:
    return {"error": answer.message}
