"""An engine that plays scripts: the fake of `kvstet.engine.client.EngineClient`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace

from kvstet.engine.messages import (
    Anticipate,
    Appraise,
    Appraised,
    Event,
    Finished,
    FinishReason,
    Generate,
    ModelInfo,
    Progress,
    Started,
    Stats,
    Token,
    TokenLogprobs,
)
from kvstet.errors import ContextOverflow, KvstetError, ShuttingDown
from kvstet.types import RequestId, Reuse

Script = Callable[[Generate], AsyncGenerator[Event, None]]
"""The events of one request. A script that raises is an engine that failed there."""

TINY_MODEL = ModelInfo(
    name="tiny",
    architecture="llama",
    description="llama tiny F16",
    num_parameters=1_000_000,
    size_bytes=2_000_000,
    vocab_size=512,
    context_length=4096,
    training_context_length=8192,
    live_cells=8192,
    parallel=4,
    memory_kind="attention",
    memory_summary="Any prefix can be reused.",
    span_bytes_per_token=1024,
    checkpoint_bytes=0,
    chat_template=None,
)


@dataclass(frozen=True, slots=True)
class Say:
    """A script that replies with ``tokens``, or those that the request forces, and ends as its ``max_new_tokens``
    demands."""

    tokens: Sequence[int]
    reuse: Reuse | None = None
    """None: the whole prompt is computed, and none of it was known."""
    reason: FinishReason = "stop"
    prefill_seconds: float = 0.0
    token_seconds: float = 0.0
    """Pause before each token; without one, all tokens are ready at once."""
    logprobs: Sequence[TokenLogprobs] = ()
    """One for each token, given only to requests that ask for them."""
    error: KvstetError | None = None
    """Raised in place of the end."""

    async def __call__(self, request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, self.reuse or _cold(request), queue_seconds=0.001, load_seconds=0.002)
        if self.prefill_seconds:
            yield Progress(request.id, num_ready_tokens=0, num_prompt_tokens=len(request.tokens))
            await asyncio.sleep(self.prefill_seconds)
        limit = request.max_new_tokens
        said = request.forced or self.tokens
        tokens = said if limit is None else said[:limit]
        for position, token in enumerate(tokens):
            if self.token_seconds:
                await asyncio.sleep(self.token_seconds)
            reported = self.logprobs[position] if self.logprobs and request.num_logprobs is not None else None
            yield Token(request.id, token, reported)
        if self.error is not None:
            raise self.error
        is_cut = limit is not None and limit <= len(said)
        yield Finished(request.id, "length" if is_cut else self.reason, len(tokens), 0.5, 0.25)


@dataclass(frozen=True, slots=True)
class Hang:
    """A script that starts, and then computes its prompt for ever."""

    async def __call__(self, request: Generate) -> AsyncGenerator[Event, None]:
        yield Started(request.id, _cold(request), queue_seconds=0.001, load_seconds=0.0)
        await asyncio.Event().wait()


@dataclass(frozen=True, slots=True)
class Refuse:
    """A script that fails before it starts."""

    error: Exception

    async def __call__(self, request: Generate) -> AsyncGenerator[Event, None]:
        raise self.error
        yield Started(request.id, _cold(request), 0.0, 0.0)  # makes this a generator


@dataclass(slots=True)
class ScriptedEngine:
    """An `EngineClient` whose replies are scripts; remembers what was asked and what was cancelled."""

    script: Script = field(default_factory=lambda: Say(()))
    """Played once ``scripts`` is used up."""
    info: ModelInfo = TINY_MODEL
    is_ready: bool = True
    scripts: deque[Script] = field(default_factory=deque[Script])
    """Played first, one for each request."""
    requests: list[Generate] = field(default_factory=list[Generate])
    appraisal: Reuse | None = None
    """What prompts would cost; None: all of it."""
    questions: list[Appraise] = field(default_factory=list[Appraise])
    anticipated: list[Anticipate] = field(default_factory=list[Anticipate])
    cancelled: list[RequestId] = field(default_factory=list[RequestId])
    """Requests whose generator was closed or cancelled before it ended."""
    is_closed: bool = False
    _consumers: set[asyncio.Task[object]] = field(default_factory=set[asyncio.Task[object]], repr=False)
    """Tasks that iterate a reply now; `close` interrupts them."""
    _stats: Stats = field(default_factory=Stats, repr=False)

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        if self.is_closed:
            raise ShuttingDown("The server is stopping.")
        if len(request.tokens) > self.info.context_length:
            raise ContextOverflow(num_prompt_tokens=len(request.tokens), max_prompt_tokens=self.info.context_length)
        script = self.scripts.popleft() if self.scripts else self.script
        is_over = False
        with self._running():
            try:
                async with aclosing(script(request)) as events:
                    async for event in events:
                        is_over = isinstance(event, Finished)
                        self._count(event)
                        yield event
            except (GeneratorExit, asyncio.CancelledError) as interruption:
                if not is_over and not self.is_closed:
                    self.cancelled.append(request.id)
                if self.is_closed and isinstance(interruption, asyncio.CancelledError):
                    raise ShuttingDown("The server is stopping.") from None
                raise

    async def appraise(self, question: Appraise) -> Appraised:
        self.questions.append(question)
        if self.is_closed:
            raise ShuttingDown("The server is stopping.")
        num_tokens = len(question.tokens)
        reuse = self.appraisal or Reuse(0, 0, 0, num_computed_tokens=num_tokens, num_known_tokens=0)
        return Appraised(question.id, reuse, load_seconds=0.25, compute_seconds=0.5)

    def anticipate(self, prompt: Anticipate) -> None:
        self.anticipated.append(prompt)

    def stats(self) -> Stats:
        return self._stats

    async def close(self) -> None:
        self.is_closed = True
        for consumer in self._consumers:
            consumer.cancel()

    @contextmanager
    def _running(self) -> Generator[None, None, None]:
        consumer = asyncio.current_task()
        assert consumer is not None
        self._consumers.add(consumer)
        self._add(num_requests=1, num_running=1)
        try:
            yield
        finally:
            self._consumers.discard(consumer)
            self._add(num_running=-1)

    def _count(self, event: Event) -> None:
        match event:
            case Started(reuse=reuse):
                self._add(
                    num_reused_tokens=reuse.num_reused_tokens,
                    num_loaded_tokens=reuse.num_loaded_tokens,
                    num_shifted_tokens=reuse.num_shifted_tokens,
                    num_computed_tokens=reuse.num_computed_tokens,
                )
            case Token():
                self._add(num_generated_tokens=1)
            case _:
                return

    def _add(self, **increments: int) -> None:
        self._stats = replace(
            self._stats, **{name: getattr(self._stats, name) + step for name, step in increments.items()}
        )


def _cold(request: Generate) -> Reuse:
    return Reuse(0, 0, 0, num_computed_tokens=len(request.tokens), num_known_tokens=0)
