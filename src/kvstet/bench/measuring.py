"""What is measured in a scenario: prepared once for a pair, and then done to each server alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kvstet.bench.asking import client_of
from kvstet.bench.playing import Player, Prepared, prepared
from kvstet.bench.rates import decode_rate, prefill_rate
from kvstet.bench.servers import Server
from kvstet.bench.sessions import NUM_SESSIONS
from kvstet.bench.stage import Stage
from kvstet.bench.suite import Decoding, Prefill, Resident, Session, Work
from kvstet.bench.yardstick import Yardstick
from kvstet.replay.bound import Known
from kvstet.replay.results import Asked, Run

NUM_DECODED_PROMPT_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done."""

    num_pairs: int
    max_growth_tokens: int
    num_reply_tokens: int
    """Of each reply that is timed."""
    prompt_lengths: tuple[int, ...]
    """Tokens of the prompts that are timed, about."""
    size: int = 1
    """Of conversations; see `Stage.size`."""


class Measurement(Protocol):
    async def take(self, server: Server, known: Known, run: Run) -> None:
        """Note in ``run`` what is found. ServerGone: the server is gone, or has refused."""
        ...


async def prepare(work: Work, stage: Stage, yardstick: Yardstick, effort: Effort) -> Measurement:
    """Make the texts. ServerGone: kvstet does not count their tokens."""
    match work:
        case Session(steps):
            return Played(await prepared(steps(stage), yardstick))
        case Resident(steps):
            return Weighed(await prepared(steps(stage), yardstick))
        case Decoding(nums_streams):
            return Timed([_prompts(stage, count) for count in nums_streams], effort.num_reply_tokens)
        case Prefill():
            texts = [stage.text.unique(length) for length in effort.prompt_lengths]
            return Prefilled([(text, len(await yardstick.tokens(text))) for text in texts], effort.prompt_lengths)


def _prompts(stage: Stage, count: int) -> list[str]:
    return [stage.text.unique(NUM_DECODED_PROMPT_TOKENS) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Played:
    """A session: what each of its requests cost."""

    steps: Sequence[Prepared]

    async def take(self, server: Server, known: Known, run: Run) -> None:
        await Player(server, known, run).play(self.steps)


@dataclass(frozen=True, slots=True)
class Weighed:
    """Sessions, the last `NUM_SESSIONS` requests of which come again: the memory before and after, and of a token."""

    steps: Sequence[Prepared]

    async def take(self, server: Server, known: Known, run: Run) -> None:
        idle_bytes = server.memory_bytes()
        await Player(server, known, run).play(self.steps)
        full_bytes = server.memory_bytes()
        if idle_bytes is None or full_bytes is None:
            return
        run.values["idle_bytes"] = idle_bytes
        num_cached_tokens = sum(map(_num_cached_tokens, run.asked[-NUM_SESSIONS:]))
        if num_cached_tokens:
            run.values["cached_token_bytes"] = max(0, full_bytes - idle_bytes) / num_cached_tokens


def _num_cached_tokens(asked: Asked) -> int:
    return (asked.num_reused_tokens or 0) + (asked.num_loaded_tokens or 0)


@dataclass(frozen=True, slots=True)
class Timed:
    """Replies to more and more prompts at once."""

    prompts: Sequence[Sequence[str]]
    num_reply_tokens: int

    async def take(self, server: Server, known: Known, run: Run) -> None:
        async with client_of(server) as client:
            for prompts in self.prompts:
                rate = await decode_rate(client, server.model, prompts, self.num_reply_tokens)
                streams = "1_stream" if len(prompts) == 1 else f"{len(prompts)}_streams"
                run.values[f"{streams}_tokens_per_second"] = rate


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts, one after the other."""

    prompts: Sequence[tuple[str, int]]
    """Each with its number of tokens."""
    lengths: Sequence[int]
    """As they are told."""

    async def take(self, server: Server, known: Known, run: Run) -> None:
        async with client_of(server) as client:
            for (prompt, num_tokens), length in zip(self.prompts, self.lengths, strict=True):
                rate = await prefill_rate(client, server.model, prompt, num_tokens)
                run.values[f"{length}_token_prompt_tokens_per_second"] = rate
