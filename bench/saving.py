"""What saving to disk costs: decoding while it is written, and bytes that are not state.

::

    python bench/saving.py                    the bundled SmolLM2, 24 pairs
    python bench/saving.py MODEL.gguf --pairs 60 --tokens 64 --folder /where/the/cache/would/be

One engine decodes one reply, in short stretches: with nothing to write, and while the disk is given a prompt's saved
state to write, in turn; which comes first alternates. Told is the median of the ratio pair by pair (writing / not;
below 1 is slower), for two loads: the disk never idle, and one turn's new state per stretch. Then comes the metadata,
headers, tokens and index, as a part of the state it describes; of the model, and of toys with random weights.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstet.cache.cache import Cache
from kvstet.cache.disk import blobfile
from kvstet.cache.tree import Stored
from kvstet.config import EngineOptions, ModelOptions
from kvstet.demo.model import demo_model_path
from kvstet.engine.engine import Engine
from kvstet.engine.messages import Finished, Generate, Token
from kvstet.engine.process import Loaded, load_llama, opened_cache
from kvstet.types import GREEDY, RequestId, Tokens

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.toys import toy_path

TOYS = ("llama-dense", "gemma3-dense", "qwen35-dense", "mamba-dense")
"""One of each kind of memory; their state per token is a tenth of a small model's."""

TOY_TOKENS = 12_288
MESSAGE_TOKENS = 256
TURN_BLOBS = 1
"""What one turn adds: a tool's result."""


@dataclass(frozen=True)
class Stretch:
    """A short part of a reply."""

    rate: float
    """Tokens per second."""
    cpu_rate: float
    """Tokens per second of this process's CPU time, all threads: what others do on the machine adds little to it."""
    busy: float
    """Part of the steps after which the disk had something in hand."""


class Bench:
    """An engine with a disk, driven by hand."""

    def __init__(self, model: ModelOptions, loaded: Loaded, cache: Cache) -> None:
        self.cache = cache
        self.vocab_size = loaded.info.vocab_size
        self.engine = Engine(loaded.model, cache, EngineOptions(), parallel=model.parallel)
        self._random = np.random.default_rng(0)
        self._num_requests = 0
        self._last = RequestId("")

    def submit(self, tokens: Tokens, cuts: Iterable[int] = (), *, num_new: int, keeps: bool = True) -> None:
        self._num_requests += 1
        self._last = RequestId(f"r{self._num_requests}")
        self.engine.submit(
            Generate(
                self._last,
                tokens,
                tuple(cuts),
                max_new_tokens=num_new,
                sampling=GREEDY,
                ignore_eos=True,
                cache_prompt=keeps,
            )
        )

    def tokens(self, count: int) -> Tokens:
        return self._random.integers(0, self.vocab_size, count).astype(np.int32)

    def save_prompt(self, num_tokens: int) -> list[Stored]:
        """Compute a prompt and wait until its state is on disk; what was stored."""
        self.submit(self.tokens(num_tokens), range(MESSAGE_TOKENS, num_tokens, MESSAGE_TOKENS), num_new=1)
        while not self.engine.is_idle:
            self.engine.step()
        for branch in self.engine.live.parked:
            self.engine.live.release(branch)
        self.settle()
        return [node.span for node in self.cache.tree.nodes() if node.span and node.span.in_ram]

    def settle(self) -> None:
        while (pause := self.engine.idle_step()) is not None:
            time.sleep(pause)

    def write_again(self, blobs: Iterable[Stored]) -> None:
        """Take blobs from disk, so that they are to be written."""
        assert self.cache.archive is not None
        for stored in blobs:
            self.cache.archive.drop(stored)
            self.cache.archive.add(stored)

    def begin_reply(self, num_tokens: int) -> None:
        """A reply that goes on through all stretches, its first token said."""
        self.submit(self.tokens(16), num_new=num_tokens, keeps=False)
        while not any(isinstance(event, Token) for event in self.engine.step()):
            continue

    def end_reply(self) -> None:
        self.engine.cancel(self._last)
        while not self.engine.is_idle:
            self.engine.step()
        self.finish_writing()

    def stretch(self, num_tokens: int) -> Stretch:
        """Decode so many tokens."""
        num_busy = 0
        begun, begun_cpu = time.perf_counter(), time.process_time()
        for _ in range(num_tokens):
            events = self.engine.step()
            assert not any(isinstance(event, Finished) for event in events)
            num_busy += self.cache.is_writing
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - begun_cpu
        return Stretch(num_tokens / seconds, num_tokens / cpu_seconds, num_busy / num_tokens)

    def finish_writing(self) -> None:
        """Let the disk do what it has in hand, and what is left to write, outside of what is timed."""
        archive = self.cache.archive
        assert archive is not None
        while archive.num_unwritten_blobs:
            if not archive.write_step():
                time.sleep(0.002)
        archive.disk.wait()
        archive.collect()


def compare(bench: Bench, name: str, blobs: list[Stored], pairs: int, num_tokens: int) -> None:
    """One line: both medians, and the ratio's median and range."""
    found: dict[bool, list[Stretch]] = {True: [], False: []}
    bench.begin_reply((2 * pairs + 4) * (num_tokens + 1))
    for number in range(pairs + 1):
        for is_writing in (True, False) if number % 2 else (False, True):
            bench.finish_writing()
            if is_writing:
                bench.write_again(blobs)
            found[is_writing].append(bench.stretch(num_tokens))
    bench.end_reply()
    writing, resting = found[True][1:], found[False][1:]  # the first pair warms up
    rate, still = (statistics.median(stretch.rate for stretch in side) for side in (writing, resting))
    print(
        f"{name}: {sum(blob.num_bytes for blob in blobs) / 1e6:.1f} MB in each stretch of {num_tokens} tokens, "
        f"disk busy {statistics.mean(stretch.busy for stretch in writing):.0%}\n"
        f"    tokens/s             writing {rate:6.1f}  not {still:6.1f}   "
        f"{ratio_of([(a.rate, b.rate) for a, b in zip(writing, resting, strict=True)])}\n"
        f"    tokens/s of CPU                                   "
        f"{ratio_of([(a.cpu_rate, b.cpu_rate) for a, b in zip(writing, resting, strict=True)])}",
        flush=True,
    )


def ratio_of(pairs: list[tuple[float, float]]) -> str:
    """Median and middle half of the ratios."""
    ratios = [a / b for a, b in pairs]
    low, _, high = statistics.quantiles(ratios, n=4)
    return f"ratio {statistics.median(ratios):.3f}  (middle half {low:.3f} to {high:.3f}, {len(pairs)} pairs)"


def tell_metadata(name: str, folder: Path) -> None:
    """One line, of a folder that nobody has open."""
    files = [path for path in folder.glob("v1/*/*/*") if path.is_file()]
    num_payload_bytes = sum(blobfile.read_header(path).num_payload_bytes for path in files)
    num_header_bytes = sum(path.stat().st_size for path in files) - num_payload_bytes
    num_index_bytes = sum(path.stat().st_size for path in folder.glob("v1/index*"))
    part = (num_header_bytes + num_index_bytes) / max(1, num_payload_bytes)
    print(
        f"metadata, {name:<14} {len(files)} blobs with {num_payload_bytes / 1e6:.1f} MB of state: "
        f"headers and tokens {num_header_bytes / 1e3:.1f} kB, index {num_index_bytes / 1e3:.1f} kB, {part:.2%}",
        flush=True,
    )


def run(arguments: argparse.Namespace, path: Path, folder: Path) -> None:
    model = ModelOptions(path, ctx_size=8192, parallel=2, threads=arguments.threads)
    with opened(model, folder) as bench:
        blobs = bench.save_prompt(arguments.prompt)
        compare(bench, "disk never idle", blobs, arguments.pairs, arguments.tokens)
        compare(bench, "one turn's new state", blobs[:TURN_BLOBS], arguments.pairs, arguments.tokens)
    tell_metadata(path.stem[:14], folder)


@contextmanager
def opened(model: ModelOptions, folder: Path) -> Generator[Bench]:
    loaded = load_llama(model, lambda fraction: None)
    with opened_cache(model, EngineOptions(cache_folder=folder), loaded) as cache:
        yield Bench(model, loaded, cache)
    loaded.model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=re.split(r"\n\n", __doc__ or "")[0])
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--folder", type=Path, help="parent of the temporary cache folder")
    parser.add_argument("--prompt", type=int, default=6144)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", "-t", type=int)
    parser.add_argument("--pairs", type=int, default=24)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="kvstet-saving-") as folder:
        run(arguments, arguments.model or demo_model_path(), Path(folder))
    for toy in TOYS:
        with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="kvstet-saving-") as folder:
            with opened(
                ModelOptions(toy_path(toy, context_length=16384), threads=arguments.threads), Path(folder)
            ) as bench:
                bench.save_prompt(TOY_TOKENS)
            tell_metadata(toy, Path(folder))


if __name__ == "__main__":
    main()
