"""Errors as HTTP answers; each dialect puts them into its own envelope (`kvstet.api.envelopes`).

===================================  ======  ==========================================
error                                status  code
===================================  ======  ==========================================
InvalidRequest                       400     invalid_request_error
ContextOverflow                      400     context_length_exceeded
TemplateError                        400     chat_template_error
GrammarError                         400     invalid_grammar
missing or wrong API key             401     invalid_api_key
foreign Host header                  403     invalid_host
a web page's form                    403     invalid_origin
unknown path                         404     not_found
UnknownModel                         404     model_not_found
wrong method                         405     method_not_allowed
body too large                       413     request_too_large
QueueFull                            429     queue_full, with Retry-After
an API key's limits                  429     rate_limit_exceeded, with Retry-After
EngineCrashed, ShuttingDown,         503     their own, with Retry-After
ModelUnavailable
DeadlineExceeded                     504     deadline_exceeded
anything else                        500     internal_error
===================================  ======  ==========================================

A passed deadline is 504 and not 408, since the client was not slow; both are retried by the SDKs, and a retry is worth
it: the prompt computed so far is cached.
"""

from __future__ import annotations

from starlette.exceptions import HTTPException

from kvstet.api.envelopes import ErrorAnswer
from kvstet.errors import (
    ContextOverflow,
    DeadlineExceeded,
    KvstetError,
    QueueFull,
    RequestError,
    Unavailable,
    UnknownModel,
)

_BY_STATUS = {404: "not_found", 405: "method_not_allowed", 413: "request_too_large"}


class ClientGone(Exception):
    """The client hung up: nobody is left to answer."""


def answer_for(error: Exception, request_id: str) -> ErrorAnswer:
    """The answer to ``error``; what was not foreseen tells its request id and nothing else."""
    match error:
        case ContextOverflow():
            overflow = error.num_prompt_tokens, error.max_prompt_tokens
            kind = "invalid_request_error"
            return ErrorAnswer(400, str(error), kind, error.code, error.param, overflow=overflow)
        case RequestError():
            status = 404 if isinstance(error, UnknownModel) else 400
            return ErrorAnswer(status, str(error), "invalid_request_error", error.code, error.param)
        case Unavailable():
            return _unavailable(error)
        case HTTPException(status_code=status):
            code = _BY_STATUS.get(status, "invalid_request_error")
            return ErrorAnswer(status, error.detail, "invalid_request_error", code)
        case KvstetError():
            return ErrorAnswer(500, str(error), "server_error", "internal_error")
        case _:
            message = f"The server failed on this request; its log says more under request id {request_id}."
            return ErrorAnswer(500, message, "server_error", "internal_error")


def is_unforeseen(error: Exception) -> bool:
    """Whether the error is a bug or a broken model, so that the log should have its traceback."""
    return not isinstance(error, RequestError | Unavailable | HTTPException)


def _unavailable(error: Unavailable) -> ErrorAnswer:
    match error:
        case QueueFull():
            status, kind = 429, "rate_limit_error"
        case DeadlineExceeded():
            return ErrorAnswer(504, str(error), "server_error", error.code)
        case _:
            status, kind = 503, "server_error"
    return ErrorAnswer(status, str(error), kind, error.code, retry_after_seconds=error.retry_after_seconds)
