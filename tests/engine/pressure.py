"""Many imagined agents on a model that computes nothing, and the least that any cache would have to compute for them.

Sizes are those of real agents, divided by about forty: messages of 10 to 60 tokens, of which a conversation has up to a
hundred before it is summed up, behind a system prompt of a few hundred. Time is that of the model's own clock.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from kvstet.cache.archive import HEADER_BYTES
from kvstet.cache.blobfile import Record
from kvstet.cache.cache import Cache
from kvstet.cache.disk import DiskTier, ForeignBlob, Written
from kvstet.cache.tier import BlobKey, RamTier
from kvstet.config import EngineOptions
from kvstet.engine.cuts import MIN_CHECKPOINT_TOKENS
from kvstet.engine.engine import Engine
from kvstet.engine.messages import Generate, Started, Token
from kvstet.engine.model import Batch
from kvstet.types import GREEDY, Blob, CutKind, MemoryTraits, RequestId, Sampling, SeqId, Tokens

VOCABULARY = 32_000
TOKEN = np.dtype("<u2")
"""Conversations are kept as bytes, so that they are joined and compared quickly."""

SECONDS_PER_TOKEN = 1e-2
SECONDS_PER_LOOK = 1e-7
MAX_TOKENS = 4096
"""A conversation is summed up before it is longer."""

MAX_REPLY_TOKENS = 200

BYTES_PER_TOKEN = 200
CHECKPOINT_BYTES = 100 * BYTES_PER_TOKEN
"""As much as the rest of the state of a hundred tokens."""

Role = Literal["system", "user", "assistant", "tool"]


# The model


class InstantModel:
    """Knows how long its sequences are and what time it would be by now, and nothing else."""

    num_sequences = 2
    max_length = 1 << 16
    max_batch = 2048

    def __init__(self, traits: MemoryTraits, *, num_cells: int, bytes_per_token: float, checkpoint_bytes: int) -> None:
        self.traits = traits
        self.num_cells = num_cells
        self.now = 0.0
        self._bytes_per_token = bytes_per_token
        self._checkpoint_bytes = checkpoint_bytes
        self._lengths = [0] * self.num_sequences
        self._replies = replies()

    def length(self, seq: SeqId) -> int:
        return self._lengths[seq]

    def decode(self, batch: Batch) -> None:
        for seq in batch.seqs.tolist():
            self.now += SECONDS_PER_TOKEN + self._lengths[seq] * SECONDS_PER_LOOK
            self._lengths[seq] += 1

    def logits(self, row: int) -> NDArray[np.float32]:
        return np.zeros(VOCABULARY, np.float32)

    def is_end(self, token: int) -> bool:
        return False

    def sampler(self, sampling: Sampling, prompt: Tokens) -> InstantSampler:
        return InstantSampler(next(self._replies))

    def fork(self, source: SeqId, target: SeqId, stop: int) -> None:
        self._lengths[target] = stop

    def remove(self, seq: SeqId) -> None:
        self._lengths[seq] = 0

    def save_span(self, seq: SeqId, start: int, stop: int) -> Blob:
        return Blob(start, stop, np.empty(max(1, int((stop - start) * self._bytes_per_token)), np.uint8))

    def load_span(self, seq: SeqId, blob: Blob, start: int, stop: int) -> None:
        self._lengths[seq] = stop

    def save_checkpoint(self, seq: SeqId) -> Blob:
        return Blob(0, self._lengths[seq], np.empty(self._checkpoint_bytes, np.uint8))

    def load_checkpoint(self, seq: SeqId, blob: Blob) -> None:
        self._lengths[seq] = blob.stop

    def close(self) -> None:
        """Nothing to free."""


class InstantSampler:
    """Says what it was given to say."""

    def __init__(self, reply: Tokens) -> None:
        self._tokens = iter(reply.tolist())

    def sample(self, row: int) -> int:
        return next(self._tokens)

    def close(self) -> None:
        """Nothing to free."""


def replies() -> Iterator[Tokens]:
    """What the model says to one request after another, as far as it is let."""
    random = np.random.default_rng(0)
    while True:
        yield random.integers(0, VOCABULARY, MAX_REPLY_TOKENS).astype(np.int32)


# Conversations


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    data: bytes
    reasoning: bytes = b""
    """What an assistant thought before it spoke; templates leave it out of earlier turns."""

    @property
    def num_tokens(self) -> int:
        return (len(self.reasoning) + len(self.data)) // TOKEN.itemsize


@dataclass(frozen=True, slots=True)
class Request:
    messages: tuple[Message, ...]

    @property
    def data(self) -> bytes:
        return b"".join(message.reasoning + message.data for message in self.messages) + GENERATION

    @property
    def tokens(self) -> Tokens:
        return np.frombuffer(self.data, TOKEN).astype(np.int32)

    @property
    def cuts(self) -> tuple[int, ...]:
        return tuple(np.cumsum([message.num_tokens for message in self.messages]).tolist())

    @property
    def cut_kinds(self) -> tuple[CutKind, ...]:
        """What stands behind each message; see `kvstet.types.Prompt`."""
        kinds: list[CutKind] = []
        for message, after in zip(self.messages, self.messages[1:], strict=False):
            kinds.append("head" if message.role == "system" else after.role if after.role != "system" else "other")
        return (*kinds, "other")


GENERATION = np.arange(3, dtype=TOKEN).tobytes()
"""Asks for a reply, and begins the message that the reply becomes."""

Ask = Callable[[Request], Tokens]
"""Runs a request and returns the reply."""

NUM_REPLY_TOKENS = 20


class Agent:
    """Works on one task after another. `run` asks, one request per item."""

    def __init__(self, head: tuple[Message, ...], title_head: Message, seed: int) -> None:
        self._head = head
        self._title_head = title_head
        self._random = np.random.default_rng(seed)
        self._messages = head

    def run(self, ask: Ask) -> Iterator[None]:
        while True:
            self._say("user")
            if self._happens(0.5):
                ask(Request((self._title_head, self._messages[-1])))
                yield
            for _ in range(int(self._random.integers(2, 12))):
                self._reply(ask)
                yield
                self._say("tool")
                if self._happens(0.05):
                    # Something about the conversation is asked that does not become a part of it.
                    ask(Request((*self._messages, self._message("user"))))
                    yield
                if self._happens(0.05):
                    self._rewind()
                if self._happens(0.05):
                    self._edit()
                self._prune()
            self._reply(ask)
            yield
            if sum(message.num_tokens for message in self._messages) > MAX_TOKENS - 500:
                self._compact(ask)
                yield
            self._strip()

    def _say(self, role: Role) -> None:
        self._messages = (*self._messages, self._message(role))

    def _message(self, role: Role) -> Message:
        return Message(role, random_tokens(self._random, int(self._random.integers(10, 61))))

    def _reply(self, ask: Ask) -> None:
        reply = ask(Request(self._messages)).astype(TOKEN)
        middle = len(reply) // 2
        said = Message("assistant", reply[middle:].tobytes(), GENERATION + reply[:middle].tobytes())
        self._messages = (*self._messages, said)

    def _strip(self) -> None:
        """The reasoning of the turns before the next one goes."""
        self._messages = tuple(
            Message("assistant", GENERATION + message.data) if message.reasoning else message
            for message in self._messages
        )

    def _prune(self) -> None:
        """Once twenty tool results are there, all but the last ten become stubs."""
        tools = [i for i, message in enumerate(self._messages) if message.role == "tool" and message.data != STUB]
        if len(tools) >= 20:
            old = set(tools[:-10])
            self._messages = tuple(
                Message("tool", STUB) if i in old else message for i, message in enumerate(self._messages)
            )

    def _rewind(self) -> None:
        """Back by up to six messages, and on in another way."""
        count = int(self._random.integers(1, 7))
        kept = max(len(self._head) + 1, len(self._messages) - count)
        self._messages = self._messages[:kept]
        self._say("user")

    def _edit(self) -> None:
        """One of the last eight messages is changed."""
        index = len(self._messages) - 1 - int(self._random.integers(0, 8))
        if index >= len(self._head):
            changed = self._message(self._messages[index].role)
            self._messages = (*self._messages[:index], changed, *self._messages[index + 1 :])

    def _compact(self, ask: Ask) -> None:
        """A summary of all of it takes its place, with the last messages behind it."""
        summary = ask(Request((*self._messages, self._message("user")))).astype(TOKEN)
        self._messages = (*self._head, Message("user", summary.tobytes()), *self._messages[-4:])

    def _happens(self, chance: float) -> bool:
        return bool(self._random.random() < chance)


def random_tokens(random: np.random.Generator, count: int) -> bytes:
    return random.integers(0, VOCABULARY, count).astype(TOKEN).tobytes()


STUB = np.arange(100, 112, dtype=TOKEN).tobytes()


def team(num_agents: int, seed: int) -> list[Agent]:
    """Agents of which every ten or so share a system prompt, and every three of those a project's instructions too."""
    random = np.random.default_rng(seed)
    systems = [Message("system", random_tokens(random, 300)) for _ in range(max(1, num_agents // 10))]
    projects = [Message("user", random_tokens(random, 60)) for _ in range(max(1, num_agents // 3))]
    title_head = Message("system", random_tokens(random, 60))
    return [
        Agent((systems[i % len(systems)], projects[i % len(projects)]), title_head, seed=1000 * seed + i)
        for i in range(num_agents)
    ]


def turns(num_agents: int, num_requests: int, seed: int) -> Iterator[int]:
    """Which agent is to ask next, until each has asked ``num_requests`` times.

    An agent asks 5 to 20 times in a row. Then another goes on: the k-th last used, with a chance of 1/k.
    """
    random = np.random.default_rng(seed)
    left = dict.fromkeys(range(num_agents), num_requests)
    recent = random.permutation(num_agents).tolist()
    while recent:
        others = recent[1:] or recent
        weights = 1 / np.arange(1, len(others) + 1)
        agent = others[int(random.choice(len(others), p=weights / weights.sum()))]
        recent.remove(agent)
        count = min(left[agent], int(random.integers(5, 21)))
        left[agent] -= count
        if left[agent]:
            recent.insert(0, agent)
        yield from [agent] * count


# The lower bound


class Ideal:
    """Answers as the model does and computes nothing, but notes what any cache would have to compute.

    That is, of each prompt, what is behind the longest prefix that ends at a *place* of something computed before, and
    one token at least. A memory that resumes anywhere has a place at every token. Others have them where the engine
    comes to stand, so that state could be kept: at every message end, before the last token of every prompt, and at the
    end of every reply. (The last token of a reply is sampled, and not computed.)
    """

    def __init__(self, traits: MemoryTraits) -> None:
        self.bounds: list[int] = []
        """Tokens to compute, of each request."""
        self.requests: list[tuple[Request, Tokens]] = []
        """With the replies."""
        self.num_tokens = 0
        """Different ones: each prefix counts once."""
        self._traits = traits
        self._checkpoints: set[bytes] = set()
        """By the identity of what they sum up."""
        self._replies = replies()
        self._texts: list[bytes] = []
        """Sorted: what a text has in common with any of them, it has in common with one of its neighbours."""
        self._places: list[list[int]] = []

    @property
    def bound(self) -> int:
        return sum(self.bounds)

    def ask(self, request: Request, num_reply_tokens: int = NUM_REPLY_TOKENS) -> Tokens:
        reply = next(self._replies)[:num_reply_tokens]
        prompt = request.data
        num_prompt_tokens = len(prompt) // TOKEN.itemsize
        self.bounds.append(num_prompt_tokens - self._best_place(prompt, num_prompt_tokens - 1))
        self.requests.append((request, reply))
        text = prompt + reply[:-1].astype(TOKEN).tobytes()
        self._note(text, sorted({*request.cuts, num_prompt_tokens - 1, len(text) // TOKEN.itemsize}))
        return reply

    def all_state_bytes(self) -> int:
        """What all state that was ever there takes, with checkpoints as close together as the engine keeps them."""
        num_bytes = self.num_tokens * BYTES_PER_TOKEN
        return num_bytes + len(self._checkpoints) * CHECKPOINT_BYTES if self._traits.has_checkpoints else num_bytes

    def _best_place(self, prompt: bytes, limit: int) -> int:
        best = 0
        for num_known, places in self._neighbours(prompt):
            common = min(num_known, limit)
            best = max(best, _last(places, common) if self._traits.has_checkpoints else common)
        return best

    def _note(self, text: bytes, places: list[int]) -> None:
        self.num_tokens += len(text) // TOKEN.itemsize
        self.num_tokens -= max((common for common, _ in self._neighbours(text)), default=0)
        index = bisect.bisect(self._texts, text)
        self._texts.insert(index, text)
        self._places.insert(index, places)
        last, prefix = 0, hashlib.blake2b(digest_size=16)
        for place in places:
            if place - last >= MIN_CHECKPOINT_TOKENS:
                prefix.update(text[last * TOKEN.itemsize : place * TOKEN.itemsize])
                self._checkpoints.add(prefix.digest())
                last = place

    def _neighbours(self, text: bytes) -> Iterator[tuple[int, list[int]]]:
        """Tokens in common, and places, of texts on both sides as long as they may be of use: less and less."""
        index, limit = bisect.bisect(self._texts, text), len(text) // TOKEN.itemsize - 1
        for indexes in (range(index - 1, -1, -1), range(index, len(self._texts))):
            best = 0
            for i in indexes:
                common = num_common(self._texts[i], text)
                if common <= best:
                    break
                yield common, self._places[i]
                best = _last(self._places[i], min(common, limit))


def _last(places: list[int], limit: int) -> int:
    """The last place up to a limit, 0 where there is none."""
    index = bisect.bisect(places, limit)
    return places[index - 1] if index else 0


def num_common(a: bytes, b: bytes) -> int:
    """Tokens that both begin with."""
    size = min(len(a), len(b)) // TOKEN.itemsize
    differs = np.frombuffer(a, TOKEN, size) != np.frombuffer(b, TOKEN, size)
    first = int(differs.argmax()) if size else 0
    return first if size and differs[first] else size


# The engine


class World:
    """An engine on a model that computes nothing, and the time that passes there."""

    def __init__(
        self,
        traits: MemoryTraits,
        ram_bytes: int,
        disk_bytes: int = 0,
        *,
        num_cells: int = MAX_TOKENS + 512,
        bytes_per_token: float = BYTES_PER_TOKEN,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
    ) -> None:
        self.model = InstantModel(
            traits, num_cells=num_cells, bytes_per_token=bytes_per_token, checkpoint_bytes=checkpoint_bytes
        )
        self.tier = RamTier(ram_bytes)
        disk = cast(DiskTier, InstantDisk(disk_bytes)) if disk_bytes else None
        self.cache = Cache(traits, self.tier, disk, clock=self.clock)
        self.engine = Engine(self.model, self.cache, EngineOptions(), parallel=4, clock=self.clock)
        self.num_computed_tokens = 0
        self._random = np.random.default_rng(1)
        self._num_requests = 0

    def clock(self) -> float:
        return self.model.now

    def ask(self, request: Request, num_reply_tokens: int = NUM_REPLY_TOKENS) -> Tokens:
        """Run one request to its end, and let some time go by, as if the agent used a tool."""
        self._num_requests += 1
        self.engine.submit(
            Generate(
                RequestId(str(self._num_requests)),
                request.tokens,
                request.cuts,
                cut_kinds=request.cut_kinds,
                max_new_tokens=num_reply_tokens,
                sampling=GREEDY,
            )
        )
        reply: list[int] = []
        while not self.engine.is_idle:
            for event in self.engine.step():
                if isinstance(event, Started):
                    self.num_computed_tokens += event.reuse.num_computed_tokens
                elif isinstance(event, Token):
                    reply.append(event.token)
        assert len(reply) == num_reply_tokens
        self.pass_time(float(self._random.exponential(3.0)))
        return np.array(reply, np.int32)

    def pass_time(self, seconds: float) -> None:
        """Nobody asks anything; the engine has time to tidy up."""
        until = self.model.now + seconds
        while (due := self.engine.idle_step()) is not None:
            self.model.now += max(due, 1e-3)
        self.model.now = max(self.model.now, until)


class InstantDisk:
    """A disk whose writer is always done at once; in the place of a `DiskTier`, of which it has what the cache uses."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._blobs: dict[BlobKey, tuple[Blob, int]] = {}
        self._finished: list[Written] = []

    @property
    def is_busy(self) -> bool:
        return bool(self._finished)

    def records(self) -> list[Record]:
        return []

    def new_records(self) -> list[Record]:
        return []

    def foreign(self) -> list[ForeignBlob]:
        return []

    def get(self, key: BlobKey) -> Blob | None:
        return self._blobs[key][0] if key in self._blobs else None

    def can_write(self, num_bytes: int) -> bool:
        return True

    def write(self, record: Record, data: NDArray[np.uint8]) -> None:
        num_bytes = len(data) + len(record.tokens) + HEADER_BYTES
        self.drop([record.key])
        self._blobs[record.key] = (Blob(record.key.start, record.stop, data), num_bytes)
        self.used_bytes += num_bytes
        assert self.used_bytes <= self.capacity_bytes
        self._finished.append(Written(replace(record, num_bytes=num_bytes), None))

    def finished(self) -> list[Written]:
        finished, self._finished = self._finished, []
        return finished

    def wait(self) -> None:
        """It is done already."""

    def touch(self, used: Iterable[tuple[BlobKey, int, float]]) -> None:
        """Nobody else wants to know."""

    def drop(self, keys: Iterable[BlobKey]) -> None:
        for key in keys:
            if key in self._blobs:
                self.used_bytes -= self._blobs.pop(key)[1]


def run_team(ask: Ask, pass_time: Callable[[float], None], num_agents: int, num_requests: int, seed: int) -> None:
    """All agents work, each in its turns."""
    agents = [agent.run(ask) for agent in team(num_agents, seed)]
    last: int | None = None
    for index in turns(num_agents, num_requests, seed):
        if index != last:
            pass_time(20.0)
            last = index
        next(agents[index])
