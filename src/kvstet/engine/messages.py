"""What the server and an engine process say to each other: plain values that pickle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from kvstet.errors import KvstetError
from kvstet.types import DEFAULT_SAMPLING, CutKind, Fidelity, RequestId, Reuse, Sampling, Tokens

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Generate:
    """One request: token ids in, token ids out."""

    id: RequestId
    tokens: Tokens
    cuts: tuple[int, ...] = ()
    """Positions at which messages end; the cache keeps resumable state there."""
    max_new_tokens: int | None = None
    """None: until the model ends its turn or the context is full. 0: compute the prompt only."""
    sampling: Sampling = DEFAULT_SAMPLING
    num_logprobs: int | None = None
    """Alternatives to report for each token (0: only the chosen one's); None: report nothing."""
    ignore_eos: bool = False
    cache_prompt: bool = True
    """False: compute everything anew and leave nothing behind, as for a measurement."""
    deadline_seconds: float | None = None
    """Time the request may take from when the engine gets it; None: the engine's own default."""
    cut_kinds: tuple[CutKind, ...] = ()
    """What stands behind each of the cuts; empty: not known."""
    is_streamed: bool = True
    """False: the client sees nothing of the reply until all of it is there, so it may be begun anew after a crash."""
    fidelity: Fidelity = "exact"
    """``approximate``: state under moved positions will do."""
    forced: tuple[int, ...] = ()
    """For tests and replays: the reply begins with these tokens, whatever the model thinks of them."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a request within one step and free its tokens; no event follows for it but ``Finished("cancelled")``."""

    id: RequestId


@dataclass(frozen=True, slots=True)
class Anticipate:
    """A prompt, or the beginning of one, that will probably come: compute it while nothing else is to do.

    No event follows, and nothing depends on it.
    """

    tokens: Tokens
    cuts: tuple[int, ...] = ()
    cut_kinds: tuple[CutKind, ...] = ()


@dataclass(frozen=True, slots=True)
class Appraise:
    """What would these tokens cost, were they asked for now? ``Appraised`` follows, and nothing is run."""

    id: RequestId
    tokens: Tokens
    cache_prompt: bool = True
    fidelity: Fidelity = "exact"

    is_streamed = False


Command = Generate | Cancel | Anticipate | Appraise


@dataclass(frozen=True, slots=True)
class Started:
    """The request was admitted, and this is where its prompt comes from.

    A second one means that the request is run again, after a crash: the tokens that came before it are void.
    """

    id: RequestId
    reuse: Reuse
    queue_seconds: float
    load_seconds: float
    exact_because: str | None = None
    """Why nothing was approximated though it would have helped and was allowed, as a clause."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Prompt tokens that are ready, of all; sent after each prefill step but the last."""

    id: RequestId
    num_ready_tokens: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, of the model itself, before any sampler or bias."""

    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most likely tokens with theirs, best first."""


@dataclass(frozen=True, slots=True)
class Token:
    """One sampled token; also the one that ends the turn."""

    id: RequestId
    token: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request that went well or was cancelled."""

    id: RequestId
    reason: FinishReason
    num_new_tokens: int
    compute_seconds: float
    """From admission until the first token was sampled, loading excluded."""
    decode_seconds: float
    """From the first token until the last."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last event of a request that could not be served."""

    id: RequestId
    error: KvstetError


@dataclass(frozen=True, slots=True)
class Appraised:
    """What a prompt would cost; the only event of an ``Appraise``."""

    id: RequestId
    reuse: Reuse
    load_seconds: float
    compute_seconds: float
    """Until its first token, loading excluded, were it alone."""
    exact_because: str | None = None
    """As in ``Started``."""


Event = Started | Progress | Token | Finished | Failed | Appraised
LAST_EVENTS = (Finished, Failed, Appraised)
"""Nothing follows them."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the server tells users about the loaded model."""

    name: str
    architecture: str
    description: str
    num_parameters: int
    size_bytes: int
    vocab_size: int
    context_length: int
    """Most tokens of one request, prompt and reply together."""
    training_context_length: int
    live_cells: int
    parallel: int
    memory_kind: str
    """``attention``, ``swa``, ``recurrent``, ``hybrid`` or ``opaque``."""
    memory_summary: str
    """One sentence: what the cache can do with it."""
    span_bytes_per_token: int
    checkpoint_bytes: int
    chat_template: str | None
    num_found_blobs: int = 0
    """Saved states that were on disk when the process started."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A snapshot of counters and gauges; counters only grow while the process lives."""

    num_requests: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_reused_tokens: int = 0
    num_loaded_tokens: int = 0
    num_shifted_tokens: int = 0
    num_computed_tokens: int = 0
    num_generated_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    num_nodes: int = 0
    num_live_cells: int = 0
    num_parked_branches: int = 0
    ram_bytes: int = 0
    num_evicted_blobs: int = 0
    num_preemptions: int = 0
    disk_bytes: int = 0
    """Of the whole cache folder, also what other models and processes have there."""
    num_unwritten_blobs: int = 0
    """State that should be on disk and is not yet, what only live branches hold included; 0 where there is no disk."""
    num_written_bytes: int = 0
    num_damaged_blobs: int = 0
    """Files that were lost, or not what was written; they were refused and given up."""
    num_predicted_tokens: int = 0
    """Computed before anyone asked for them."""
    num_predicted_tokens_used: int = 0
    """Of these, asked for later."""
    num_predicted_tokens_wasted: int = 0
    """Of these, given up."""
