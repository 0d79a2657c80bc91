"""What a restart costs: the next turn of a long session after a kill, and finding a large tree again.

::

    python bench/restart.py                   sessions of 30,000 tokens on three toys, 3 pairs each; then 10,000 nodes
    python bench/restart.py --toys gemma3-dense --pairs 5
    python bench/restart.py --toys --nodes 10000

For each pair, `kvstet serve` and its engine are killed (SIGKILL) once all is on disk, and started again. The next turn
is then asked for twice in that process: warm, as the first request after the start, and cold (``cache_prompt: false``).
Told is the time to the first token as a client sees it, the median of the ratio pair by pair (cold / warm), and how
many tokens were computed beyond the new text. The toys have random weights and SmolLM2's tokenizer and chat template.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from kvstet.bench.servers import Local
from kvstet.bench.software import Settings, Software
from kvstet.cache.cache import Cache
from kvstet.cache.disk import blobfile
from kvstet.cache.disk.blobfile import Record
from kvstet.cache.disk.tier import DiskStore, DiskTier
from kvstet.cache.tier import BlobKey, RamTier
from kvstet.cache.tree import Tree
from kvstet.demo.model import demo_model_path
from kvstet.engine.fake import ATTENTION

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.toys import toy_path

TOYS = ("llama-dense", "qwen35-dense", "gemma3-dense")
WORDS = ["the", "tree", "keeps", "every", "span", "that", "an", "agent", "sent", "and", "forks", "it", "where"]
MESSAGE_WORDS, TURN_WORDS = 600, 60
FINGERPRINT = b"a bench's model."
NODE_TOKENS, BRANCH_NODES = 200, 100
Message = dict[str, str]


@dataclass(frozen=True)
class Turn:
    """One request, as the client sees it."""

    first_token_seconds: float
    num_prompt_tokens: int
    num_reply_tokens: int
    num_computed_tokens: int
    reply: str


@contextmanager
def serving(model: Path, folder: Path) -> Generator[httpx2.Client]:
    """A server of its own process group; killed at the end, the engine with it."""
    server = Local(Software("kvstet", version("kvstet"), command), Settings(model, folder, 0))
    try:
        asyncio.run(server.start())
        with httpx2.Client(base_url=server.url, timeout=None, trust_env=False) as client:
            yield client
    finally:
        server.kill()


def command(settings: Settings, port: int) -> list[str]:
    """As long a context as the toy has, and its own template."""
    arguments = ["serve", str(settings.model), "--port", str(port), "--cache-dir", str(settings.folder / "state")]
    return [sys.executable, "-m", "kvstet", *arguments, "--parallel", "2"]


def ask(client: httpx2.Client, messages: list[Message], *, is_cold: bool = False) -> Turn:
    body: dict[str, Any] = {
        "messages": messages,
        "max_tokens": 8,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": not is_cold,
    }
    begun = time.perf_counter()
    first, reply, usage, report = 0.0, "", {}, {}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            first = first or (time.perf_counter() - begun if text else 0.0)
            reply += text
            usage = chunk.get("usage") or usage
            report = chunk.get("kvstet") or report
    return Turn(first, usage["prompt_tokens"], usage["completion_tokens"], report["computed"], reply)


def wait_until_written(client: httpx2.Client) -> None:
    while not re.search(r"^kvstet_unwritten_blobs 0\.0$", client.get("/metrics").text, re.MULTILINE):
        time.sleep(0.1)


def compare(toy: str, num_tokens: int, pairs: int) -> None:
    """One line for one toy."""
    model = toy_path(toy, context_length=num_tokens + 8192, vocabulary=demo_model_path())
    generator = random.Random(0)
    text = [" ".join(generator.choices(WORDS, k=MESSAGE_WORDS)) for _ in range(num_tokens // MESSAGE_WORDS + 1)]
    roles = ["system", *("user" if number % 2 == 0 else "assistant" for number in range(len(text) - 1))]
    messages: list[Message] = [{"role": role, "content": content} for role, content in zip(roles, text, strict=True)]
    found: list[tuple[Turn, Turn]] = []
    excesses: list[int] = []

    def say(client: httpx2.Client) -> Turn:
        messages.append({"role": "user", "content": " ".join(generator.choices(WORDS, k=TURN_WORDS))})
        return ask(client, messages)

    with tempfile.TemporaryDirectory(prefix="kvstet-restart-") as folder:
        with serving(model, Path(folder)) as client:
            last = say(client)
            wait_until_written(client)
        for _ in range(pairs):
            messages.append({"role": "assistant", "content": last.reply})
            with serving(model, Path(folder)) as client:
                warm = say(client)
                found.append((ask(client, messages, is_cold=True), warm))
                wait_until_written(client)
            num_new = warm.num_prompt_tokens - last.num_prompt_tokens - last.num_reply_tokens
            excesses.append(warm.num_computed_tokens - num_new)
            last = warm
    ratios = [cold.first_token_seconds / warm.first_token_seconds for cold, warm in found]
    cold_seconds, warm_seconds = (
        statistics.median(turn.first_token_seconds for turn in side) for side in zip(*found, strict=True)
    )
    print(
        f"{toy:<14} {last.num_prompt_tokens:6d} tokens   first token: cold {cold_seconds:7.2f} s  "
        f"after a kill {warm_seconds:6.3f} s   ratio {statistics.median(ratios):6.1f} "
        f"({min(ratios):.1f} to {max(ratios):.1f}, {pairs} pairs)   computed beyond the new text: {max(excesses)}",
        flush=True,
    )


def fill(folder: Path, num_nodes: int) -> None:
    """Files of as many nodes, in branches that share nothing; their state is next to nothing."""
    generator = np.random.default_rng(0)
    tree = Tree(FINGERPRINT)
    temp = folder / "v1" / "temp"
    with closing(DiskStore(folder)) as store, without_sync():
        for _ in range(num_nodes // BRANCH_NODES):
            tokens = generator.integers(0, 32_000, NODE_TOKENS * BRANCH_NODES).astype(np.int32)
            tip = tree.insert(tokens, tuple(range(NODE_TOKENS, len(tokens), NODE_TOKENS)), 0.0)
            for node in tip.path():
                assert node.parent is not None
                key = BlobKey("span", node.id, node.start)
                now = time.time()
                record = Record(key, node.parent.id, node.start, node.stop, node.data, 1.0, 1, now)
                blobfile.write(temp, store.path(FINGERPRINT, key), FINGERPRINT, record, np.zeros(64, np.uint8))


@contextmanager
def without_sync() -> Generator[None]:
    """Filling is not what is measured."""
    fsync, os.fsync = os.fsync, lambda file: None
    try:
        yield
    finally:
        os.fsync = fsync


def find_again(num_nodes: int, runs: int) -> None:
    """Two lines: with its index, and where that was deleted."""
    with tempfile.TemporaryDirectory(prefix="kvstet-restart-") as name:
        folder = Path(name)
        fill(folder, num_nodes)
        for what in ("index deleted", "restart"):
            times: list[tuple[float, float]] = []
            for _ in range(runs):
                if what == "index deleted":
                    for path in folder.glob("v1/index*"):
                        path.unlink()
                times.append(open_once(folder, num_nodes))
            wall, cpu = (min(side) for side in zip(*times, strict=True))
            print(
                f"{what:<14} {num_nodes:6d} nodes found in {wall:.2f} s, {cpu:.2f} s of CPU (best of {runs})",
                flush=True,
            )


def open_once(folder: Path, num_nodes: int) -> tuple[float, float]:
    """Seconds until the tree stands, and of CPU."""
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with closing(DiskStore(folder)) as store:
        disk = DiskTier(store, FINGERPRINT, capacity_bytes=1 << 40, write_bytes_per_hour=None)
        cache = Cache(ATTENTION, RamTier(1 << 30), disk, fingerprint=FINGERPRINT)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - begun_cpu
        assert cache.tree.num_nodes == num_nodes, cache.tree
        cache.finish()
    return seconds, cpu_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("--toys", nargs="*", default=TOYS)
    parser.add_argument("--tokens", type=int, default=30_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=10_000, help="0: do without")
    arguments = parser.parse_args()
    for toy in arguments.toys:
        compare(toy, arguments.tokens, arguments.pairs)
    if arguments.nodes:
        find_again(arguments.nodes, runs=5)


if __name__ == "__main__":
    main()
