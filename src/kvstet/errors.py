"""Every error kvstet raises on purpose.

::

    KvstetError
    ├── RequestError              the client's fault: a 4xx, never retried
    │   ├── InvalidRequest        a field is missing, absurd or not supported
    │   ├── ContextOverflow       the prompt does not fit, with the numbers
    │   ├── TemplateError         the chat template raised on these messages
    │   └── GrammarError          a grammar or JSON schema that cannot be used
    ├── Unavailable               not now: a 5xx or 429, the client may retry
    │   ├── QueueFull
    │   ├── DeadlineExceeded
    │   ├── EngineCrashed
    │   └── ShuttingDown
    └── LlamaError                libllama refused, or would have corrupted or aborted
        ├── ModelLoadError
        ├── UnsupportedModel
        ├── MemoryMisuse          a call that would corrupt silently or kill the process
        ├── OutOfCells            no room in the live KV cells for this batch or snapshot
        └── SnapshotMismatch      bytes that are not a snapshot of this context

Foreign errors (Jinja, msgspec, libllama return codes) are translated once, at the seam that meets them.
All errors pickle: they cross from the engine process to the server.
"""

from __future__ import annotations


class KvstetError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is one sentence fit for a user."""


class RequestError(KvstetError):
    """The request cannot be served as it stands."""

    code = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), dict(self.__dict__), self.args))


class InvalidRequest(RequestError):
    """A field is missing, absurd or not supported."""


class ContextOverflow(RequestError):
    """The prompt has more tokens than the context holds."""

    code = "context_length_exceeded"

    def __init__(self, *, num_prompt_tokens: int, max_prompt_tokens: int) -> None:
        super().__init__(
            f"This model's maximum context length is {max_prompt_tokens} tokens, prompt and reply together, but the"
            f" prompt has {num_prompt_tokens} tokens. Shorten the conversation, or start the server with a larger"
            " --ctx-size.",
            param="messages",
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_prompt_tokens = max_prompt_tokens


class TemplateError(RequestError):
    """The model's chat template raised on these messages."""

    code = "chat_template_error"


class GrammarError(RequestError):
    """A grammar or JSON schema that cannot be compiled."""

    code = "invalid_grammar"


class Unavailable(KvstetError):
    """The request is fine, but cannot be served now."""

    code = "server_error"
    retry_after_seconds: float = 1.0


class QueueFull(Unavailable):
    """More requests wait than the server was told to hold."""

    code = "queue_full"


class DeadlineExceeded(Unavailable):
    """The request's time was over before it was finished."""

    code = "deadline_exceeded"


class EngineCrashed(Unavailable):
    """The engine process died while it worked on this request; it is being restarted."""

    code = "engine_crashed"


class ShuttingDown(Unavailable):
    """The server is stopping."""

    code = "shutting_down"


class LlamaError(KvstetError):
    """libllama refused, or would have corrupted state or aborted the process."""


class ModelLoadError(LlamaError):
    """The model file is missing, damaged, or of an unknown architecture."""


class UnsupportedModel(LlamaError):
    """The model loads, but is not a generative decoder (an embedding or diffusion model, say)."""


class MemoryMisuse(LlamaError):
    """A call that libllama would answer with silent corruption or an abort."""


class OutOfCells(LlamaError):
    """The live KV cells have no room for this batch or snapshot."""


class SnapshotMismatch(LlamaError):
    """Bytes that are not a snapshot of this context."""


def _rebuild(kind: type[RequestError], state: dict[str, object], args: tuple[object, ...]) -> RequestError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
