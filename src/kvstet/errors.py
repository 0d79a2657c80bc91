"""Every error kvstet raises on purpose.

::

    KvstetError
    ├── RequestError              the client's fault: a 4xx, never retried
    │   ├── InvalidRequest        a field is missing, absurd or not supported
    │   ├── ContextOverflow       the prompt does not fit, with the numbers
    │   ├── TemplateError         the chat template raised on these messages
    │   ├── UnknownModel          the server has no model of this name
    │   └── GrammarError          a grammar or JSON schema that cannot be used
    ├── Unavailable               not now: a 5xx or 429, the client may retry
    │   ├── QueueFull
    │   ├── DeadlineExceeded
    │   ├── EngineCrashed
    │   ├── ModelUnavailable      it cannot be loaded, or there is no memory for it
    │   ├── UpstreamUnreachable   the gateway got no answer from the server behind it
    │   ├── UpstreamSilent        a DeadlineExceeded: that server took too long to answer
    │   └── ShuttingDown
    ├── EngineMissing             kvstet was installed without libllama
    ├── LlamaError                libllama refused, or would have corrupted or aborted
    │   ├── ModelLoadError
    │   ├── UnsupportedModel
    │   ├── MemoryMisuse          a call that would corrupt silently or kill the process
    │   ├── OutOfCells            no room in the live KV cells for this batch or snapshot
    │   ├── OutOfMemory           no memory to write or read a snapshot; it is not kept, or not loaded
    │   └── SnapshotMismatch      bytes that are not a snapshot of this context
    ├── UnknownProvider           no provider of this name
    ├── Unreadable                what passed the gateway cannot be looked at; it passed all the same
    ├── LedgerUnavailable         the account of what requests cost cannot be read now
    ├── ServerGone                a server that is measured does not start, or answers no more
    ├── BrokenHistory             a conversation that is not, byte for byte, what was written
    ├── AgentError                `kvstet agent` cannot go on
    │   ├── ModelFailed           the model's server refused, broke off or was out of reach
    │   ├── ToolFailed            a call that is not carried out; the model is told why, and the agent goes on
    │   ├── ServerFailed          a tool server does not start, or does not speak MCP
    │   └── SessionError          a stored session that is not there, or cannot be read or written
    └── CacheError                the cache on disk failed; to the engine it is a miss
        ├── DamagedBlob           a file that is not, byte for byte, what was written
        ├── DiskUnavailable       the cache folder or its index cannot be used now
        ├── NotKept               what a command names is not in the cache folder
        └── BadExport             a file that cannot be written as an export of the cache, or is none

Foreign errors (Jinja, msgspec, SQLite, libllama return codes) are translated once, at the seam that meets them.
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

    def __init__(self, *, num_prompt_tokens: int, max_prompt_tokens: int, param: str | None = None) -> None:
        super().__init__(
            f"This model's maximum context length is {max_prompt_tokens} tokens, prompt and reply together, but the"
            f" prompt has {num_prompt_tokens} tokens. Shorten the conversation, or start the server with a larger"
            " --ctx-size.",
            param=param,
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_prompt_tokens = max_prompt_tokens


class TemplateError(RequestError):
    """The model's chat template raised on these messages."""

    code = "chat_template_error"


class GrammarError(RequestError):
    """A grammar or JSON schema that cannot be compiled."""

    code = "invalid_grammar"


class UnknownModel(RequestError):
    """The server has no model of this name."""

    code = "model_not_found"


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


class UpstreamUnreachable(Unavailable):
    """The gateway has no connection to the server behind it, or one that ended before there was an answer: 502."""

    code = "upstream_unreachable"


class UpstreamSilent(DeadlineExceeded):
    """The server behind the gateway took too long to answer: 504."""

    code = "upstream_timeout"


class EngineCrashed(Unavailable):
    """The engine process died while it worked on this request; it is being restarted."""

    code = "engine_crashed"


class ModelUnavailable(Unavailable):
    """The model is not loaded, and cannot be loaded now."""

    code = "model_unavailable"
    retry_after_seconds = 5.0


class ShuttingDown(Unavailable):
    """The server is stopping."""

    code = "shutting_down"


class EngineMissing(KvstetError):
    """kvstet was installed without libllama, which what is asked for needs."""


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


class OutOfMemory(LlamaError):
    """There is no memory to write a snapshot to, or to read one with; the live state is as it was."""


class SnapshotMismatch(LlamaError):
    """Bytes that are not a snapshot of this context."""


class CacheError(KvstetError):
    """The cache on disk failed. Requests are served without it."""


class DamagedBlob(CacheError):
    """A blob's file is not, byte for byte, what was written under its name."""


class DiskUnavailable(CacheError):
    """The cache folder or its index cannot be used now: read-only, full, locked or out of reach."""


class NotKept(CacheError):
    """What a command names is not in the cache folder, or its name fits several."""


class BadExport(CacheError):
    """A file that cannot be written as an export of the cache, or that is none, or not a whole one."""


def _rebuild(kind: type[RequestError], state: dict[str, object], args: tuple[object, ...]) -> RequestError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class UnknownProvider(KvstetError):
    """No provider has this name."""


class Unreadable(KvstetError):
    """What passed through the gateway cannot be looked at; it passed all the same."""


class LedgerUnavailable(KvstetError):
    """The account of what requests cost cannot be read now: no access, or another program holds it."""


class ServerGone(KvstetError):
    """A server that is measured does not start, ended, or answers no more."""


class BrokenHistory(KvstetError):
    """A stored conversation is not, byte for byte, what was written, or cannot be written as JSON."""


class AgentError(KvstetError):
    """`kvstet agent` cannot go on."""


class ModelFailed(AgentError):
    """The model's server refused a request, broke off or was out of reach.

    ``status`` is HTTP's, None where there was no answer; ``retry_after_seconds`` is the server's own word.
    """

    def __init__(self, message: str, *, status: int | None = None, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), self.args, dict(self.__dict__))


class ToolFailed(AgentError):
    """A tool's call that is not carried out, or went wrong; ``str(error)`` is told to the model."""


class ServerFailed(AgentError):
    """A tool server does not start, or does not speak MCP."""


class SessionError(AgentError):
    """A stored session that is not there, or cannot be read or written."""
