"""How fast replies get longer, and prompts are computed, as a client sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx2

from kvstet.bench.asking import PATHS, Reading, stream
from kvstet.bench.steps import Body
from kvstet.errors import ServerGone


async def decode_rate(client: httpx2.AsyncClient, model: str, prompts: Sequence[str], num_tokens: int) -> float:
    """Tokens per second of replies to all prompts at once, from when the last one began until the first one ended.

    ServerGone: a reply was refused, or is too short to be timed.
    """
    replies = await asyncio.gather(
        *(_complete(client, model, prompt, max_tokens=num_tokens, ignore_eos=True) for prompt in prompts)
    )
    times = [reply.piece_times for reply in replies]
    if not all(times):
        raise ServerGone("A reply was empty, and could not be timed.")
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    num_between = sum(begin < at <= end for each in times for at in each)
    if not num_between:
        raise ServerGone("The replies did not run at the same time, or were too short to be timed.")
    return num_between / (end - begin)


async def prefill_rate(client: httpx2.AsyncClient, model: str, prompt: str, num_tokens: int) -> float:
    """Prompt tokens per second until the first token; ``num_tokens``: of the prompt. ServerGone: it was refused."""
    answer = (await _complete(client, model, prompt, max_tokens=1)).answer
    if answer.first_seconds is None:
        raise ServerGone("A completion came without a token and without an end.")
    return (answer.usage.num_input_tokens or num_tokens) / answer.first_seconds


async def _complete(client: httpx2.AsyncClient, model: str, prompt: str, **fields: object) -> Reading:
    """Without the prompt cache, where the server knows that field."""
    body: Body = {"model": model, "prompt": prompt, "cache_prompt": False, **fields}
    reading = await stream(client, PATHS["text"], body)
    if reading.error is not None:
        raise ServerGone(f"A completion was refused: {reading.error}")
    return reading
