"""Words that every layer shares. Units are in the names: ``num_*_tokens``, ``*_bytes``, ``*_seconds``."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Literal, NewType, Protocol

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int32]
"""Token ids, shape ``(n,)``."""

RequestId = NewType("RequestId", str)
SeqId = NewType("SeqId", int)

Fidelity = Literal["exact", "equivalent", "approximate"]
"""What a request may be answered with: precisely what was sent; the same in other words; state kept at other places.
Each includes the ones before it."""

SubstitutionName = Literal[
    "clock",
    "date",
    "git-status",
    "request-id",
    "billing-header",
    "counter",
    "system-lines",
    "reminder",
    "tool-order",
    "arguments",
    "reasoning",
    "tool-output",
]
"""What the model may read otherwise than it was sent, at fidelity ``equivalent``.

See `kvstet.context.equivalent.catalogue`.
"""


@dataclass(frozen=True, slots=True)
class Substitution:
    """One thing that the model reads otherwise than it was sent."""

    name: SubstitutionName
    message: int | None
    """Index into the request's messages; None for the tools."""
    what: str
    """In a short sentence, which quotes nothing of the prompt."""
    num_tokens: int | None = None
    """Of what now stands there, where that is known."""


MAPPED_BYTES = 64 * 1024
"""From this size on, a buffer is a memory mapping of its own."""


def new_buffer(num_bytes: int) -> NDArray[np.uint8]:
    """A writable array for state, its content undefined. A large one returns to the system as soon as it is freed.

    The C library's heap would keep it: a few small objects above it are enough. Raises MemoryError.
    """
    if num_bytes < MAPPED_BYTES:
        return np.empty(num_bytes, np.uint8)
    try:
        mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"No memory for {num_bytes} bytes of state.") from error
    return np.frombuffer(mapping, np.uint8)


@dataclass(frozen=True, slots=True)
class Reuse:
    """Where each prompt token came from; the four parts add up to the prompt."""

    num_reused_tokens: int
    """State was already live."""
    num_loaded_tokens: int
    """State was brought back from a tier."""
    num_shifted_tokens: int
    """State was kept under moved positions (approximate)."""
    num_computed_tokens: int
    """Decoded for this request."""
    num_known_tokens: int
    """Longest prefix ever seen by this cache, whether or not its state was still there."""

    @property
    def num_prompt_tokens(self) -> int:
        return self.num_reused_tokens + self.num_loaded_tokens + self.num_shifted_tokens + self.num_computed_tokens

    @property
    def num_cached_tokens(self) -> int:
        return self.num_prompt_tokens - self.num_computed_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a provider says that one request took, in tokens. None: it did not say, which is not 0."""

    num_input_tokens: int | None = None
    """The whole prompt, with what was read from a cache or written into one."""
    num_cache_read_tokens: int | None = None
    num_cache_write_tokens: int | None = None
    num_long_cache_write_tokens: int | None = None
    """Of those written: into entries that are kept longer than usual, which costs more."""
    num_output_tokens: int | None = None
    """With the reasoning."""
    num_reasoning_tokens: int | None = None

    @property
    def num_fresh_tokens(self) -> int | None:
        """Of the input: neither read from a cache nor written into one. None where that is not known."""
        if self.num_input_tokens is None or self.num_cache_read_tokens is None:
            return None
        return self.num_input_tokens - self.num_cache_read_tokens - (self.num_cache_write_tokens or 0)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Names and defaults are llama.cpp's."""

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    """Window of the three penalties, in tokens; -1 is the whole context."""
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None
    """None draws a fresh one."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    grammar: str | None = None
    """GBNF text, its start rule named ``root``."""
    grammar_triggers: tuple[str, ...] = ()
    """The grammar binds behind the first of these that is generated; empty: from the start."""
    grammar_pause: tuple[str, str] | None = None
    """Between these, triggers are text like any other: where reasoning begins and ends."""
    is_grammar_paused: bool = False
    """The prompt has begun such a pause."""


DEFAULT_SAMPLING = Sampling()
GREEDY = Sampling(temperature=0.0)


HEAD_ROLES = frozenset({"system", "developer"})

CutKind = Literal["head", "user", "assistant", "tool", "other"]
"""What stands behind a message end: "head" is the end of the system prompt and the tools, or of a part that the client
marks; else it is the next role."""


@dataclass(frozen=True, slots=True)
class MessageSpan:
    """The tokens ``[start, stop)`` that one message became in the rendered prompt."""

    start: int
    stop: int
    index: int | None
    """Index into the request's messages; None for the generation prompt."""
    role: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation: its tokens, and where each message lies. Spans cover ``[0, len(tokens))`` in order."""

    tokens: Tokens
    spans: tuple[MessageSpan, ...]
    text: str = field(repr=False, default="")
    opening: str = ""
    """The end of ``text`` that opens a reply, the generation prompt; empty where there is none."""
    num_echoed_messages: int = 0
    """Replies of the model that stand there as it generated them, token by token."""
    masked: tuple[str, ...] = ()
    """Names of what was sent and is kept from the model."""
    breakpoints: tuple[int, ...] = ()
    """Token positions within messages at which the client says that a part ends that will come again."""
    substitutions: tuple[Substitution, ...] = ()
    """What the model reads otherwise than it was sent."""
    owner: str = ""
    """Name of the API key whose conversation it is: its reasoning comes back to nobody else."""

    @property
    def cuts(self) -> tuple[int, ...]:
        """Token positions at which messages end, or where the client wants a cut; ascending."""
        return tuple(self._kinds)

    @property
    def cut_kinds(self) -> tuple[CutKind, ...]:
        """What stands behind each of the `cuts`."""
        return tuple(self._kinds.values())

    @property
    def _kinds(self) -> dict[int, CutKind]:
        spans = [span for span in self.spans if span.stop > span.start]
        kinds: dict[int, CutKind] = dict.fromkeys(self.breakpoints, "head")
        for span, after in zip_longest(spans, spans[1:]):
            kinds[span.stop] = _kind_between(span, after)
        return {cut: kinds[cut] for cut in sorted(kinds)}


def _kind_between(span: MessageSpan, after: MessageSpan | None) -> CutKind:
    if after is None or after.index is None:
        return "other"
    if span.role in HEAD_ROLES and after.role not in HEAD_ROLES:
        return "head"
    match after.role:
        case "user" | "assistant" | "tool":
            return after.role
        case _:
            return "other"


class Tokenizer(Protocol):
    """Text to token ids and back; `kvstet.llama.vocab.Vocab` does it, `kvstet.chat.fake.ByteTokenizer` is the fake."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def special_tokens(self) -> dict[str, int]:
        """Text of every control and user-defined token -> its id."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> Tokens:
        """``add_special`` adds BOS/EOS as the model wants; ``parse_special`` reads special tokens from the text."""
        ...

    def piece(self, token: int, *, special: bool = True) -> bytes:
        """The bytes that one token prints; ``special=False`` prints nothing for control tokens."""
        ...

    @property
    def end_tokens(self) -> frozenset[int]:
        """Every token that ends a turn or text."""
        ...

    def token_text(self, name: Literal["bos", "eos"]) -> str:
        """Text of the model's BOS or EOS token, as chat templates use it; empty where it has none."""
        ...


@dataclass(frozen=True, slots=True)
class MemoryTraits:
    """What may be done with a model's memory; see `kvstet.llama.memory.memory_traits` for how each kind maps to it.

    The state of a prefix has two parts. The *additive* part (K/V of plain attention layers) can be saved and loaded
    range by range. The *summary* part (a sliding window, a recurrent state) exists only for the position where the
    sequence stands, and is saved whole as a checkpoint. A kind has one of them or both.
    """

    kind: Literal["attention", "swa", "recurrent", "hybrid", "opaque"]
    has_spans: bool
    """There is an additive part: the state of any token range can be saved and loaded alone."""
    has_checkpoints: bool
    """There is a summary part: a branch resumes only where a checkpoint was kept, or at a live tip."""


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """Saved state of tokens ``[start, stop)``; a checkpoint has ``start == 0``, since it summarises all before it."""

    start: int
    stop: int
    data: NDArray[np.uint8] = field(repr=False)

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes
