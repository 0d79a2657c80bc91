"""Decode and prefill speed beside llama.cpp's own server, same model, same machine, same run, in turn.

::

    python bench/speed.py                     the bundled SmolLM2, 1, 4 and 8 streams, 5 pairs
    python bench/speed.py MODEL.gguf --pairs 7 --streams 1 8

Both servers are asked over HTTP by one client, streaming, greedy, without prompt cache for what is timed; only one of
them works at a time, and which goes first alternates. Told are medians of the ratio pair by pair (kvstet / peer; above
1 is faster). The peer is the ``xllamacpp`` package's build of llama.cpp's server (``pip install 'kvstet[bench]'``).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from kvstet.demo.model import demo_model_path

PEER = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.n_ctx, p.n_parallel, p.port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[5])
p.kv_unified, p.n_gpu_layers, p.hostnames = True, 0, ["127.0.0.1"]
server = xllamacpp.Server(p)
print("listening", server.listening_address, flush=True)
time.sleep(1e6)
"""
PORT = 18_431
WORDS = ["the", "tree", "keeps", "every", "span", "that", "an", "agent", "sent", "and", "forks", "it", "where"]


@dataclass(frozen=True)
class Server:
    name: str
    url: str
    process: subprocess.Popen[bytes]


def start(name: str, command: list[str], port: int) -> Server:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(name, f"http://127.0.0.1:{port}", process)
    for _ in range(600):
        try:
            if httpx.get(f"{server.url}/health", trust_env=False).status_code == httpx.codes.OK:
                return server
        except httpx.TransportError:
            if process.poll() is not None:
                break
        time.sleep(0.1)
    raise SystemExit(f"{name} did not start: {' '.join(command)[:200]}")


async def stream(client: httpx.AsyncClient, prompt: str, num_tokens: int) -> list[float]:
    """When each piece of one streamed completion came, seconds."""
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": num_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "cache_prompt": False,
    }
    times: list[float] = []
    async with client.stream("POST", "/v1/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
    return times


async def decode_rate(server: Server, num_streams: int, num_tokens: int) -> float:
    """Tokens per second of all streams together, from when the last one began until the first one ended."""
    async with httpx.AsyncClient(base_url=server.url, timeout=None, trust_env=False) as client:
        prompts = [f"{i} " + text(20, i) for i in range(num_streams)]
        streams = await asyncio.gather(*(stream(client, prompt, num_tokens) for prompt in prompts))
    begin = max(times[0] for times in streams)
    end = min(times[-1] for times in streams)
    return sum(sum(begin < t <= end for t in times) for times in streams) / (end - begin)


async def prefill_rate(server: Server, num_words: int, seed: int) -> float:
    """Prompt tokens per second until the first token, as a client sees it."""
    async with httpx.AsyncClient(base_url=server.url, timeout=None, trust_env=False) as client:
        body = {"prompt": text(num_words, seed), "max_tokens": 1, "temperature": 0, "cache_prompt": False}
        begun = time.perf_counter()
        response = await client.post("/v1/completions", json=body)
        seconds = time.perf_counter() - begun
    return response.json()["usage"]["prompt_tokens"] / seconds


def text(num_words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


async def compare(
    name: str, ours: Server, peer: Server, pairs: int, measure: Callable[[Server, int], Awaitable[float]]
) -> None:
    """One line: both medians, and the ratio's median and range."""
    rates: dict[str, list[float]] = {ours.name: [], peer.name: []}
    for i in range(pairs + 1):
        for server in (ours, peer) if i % 2 else (peer, ours):
            rates[server.name].append(await measure(server, i))
    mine, theirs = (rates[server.name][1:] for server in (ours, peer))  # the first pair warms up
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    print(
        f"{name:<20} kvstet {statistics.median(mine):8.1f}  peer {statistics.median(theirs):8.1f} tokens/s   "
        f"ratio {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f}, {pairs} pairs)",
        flush=True,
    )


async def run(arguments: argparse.Namespace) -> None:
    model = str(arguments.model or demo_model_path())
    threads = len(os.sched_getaffinity(0))
    slots = max(arguments.streams)
    kvstet = [sys.executable, "-m", "kvstet", "serve", model, "--port", str(PORT), "-np", str(slots), "--no-cache-disk"]
    ours = start("kvstet", [*kvstet, "-c", "8192", "-t", str(threads)], PORT)
    peer_arguments = [model, "8192", str(slots), str(PORT + 1), str(threads)]
    peer = start("peer", [sys.executable, "-c", PEER, *peer_arguments], PORT + 1)
    try:
        for num_streams in arguments.streams:
            await compare(
                f"decode, {num_streams} streams",
                ours,
                peer,
                arguments.pairs,
                lambda server, _, n=num_streams: decode_rate(server, n, arguments.tokens),
            )
        for num_words in arguments.prompts:
            await compare(
                f"prefill, {num_words} words",
                ours,
                peer,
                arguments.pairs,
                lambda server, i, n=num_words: prefill_rate(server, n, i),
            )
    finally:
        for server in (ours, peer):
            server.process.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--prompts", type=int, nargs="+", default=[1500, 5000])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=5)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
