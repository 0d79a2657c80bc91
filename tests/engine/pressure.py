"""Many imagined agents, and the least that any cache would have to compute for them.

Sizes are those of real agents, divided by about forty: messages of 10 to 60 tokens, of which a conversation has up to a
hundred before it is summed up, behind a system prompt of a few hundred.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kvstet.engine.cuts import MIN_CHECKPOINT_TOKENS
from kvstet.types import CutKind, MemoryTraits, Tokens

VOCABULARY = 32_000
TOKEN = np.dtype("<u2")
"""Conversations are kept as bytes, so that they are joined and compared quickly."""

MAX_TOKENS = 4096
"""A conversation is summed up before it is longer."""

NUM_REPLY_TOKENS = 20
MAX_REPLY_TOKENS = 200

BYTES_PER_TOKEN = 200
CHECKPOINT_BYTES = 100 * BYTES_PER_TOKEN
"""As much as the rest of the state of a hundred tokens."""

Role = Literal["system", "user", "assistant", "tool"]


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


def run_team(ask: Ask, pass_time: Callable[[float], None], num_agents: int, num_requests: int, seed: int) -> None:
    """All agents work, each in its turns."""
    agents = [agent.run(ask) for agent in team(num_agents, seed)]
    last: int | None = None
    for index in turns(num_agents, num_requests, seed):
        if index != last:
            pass_time(20.0)
            last = index
        next(agents[index])


# The lower bound


def replies() -> Iterator[Tokens]:
    """What the model says to one request after another, as far as it is let."""
    random = np.random.default_rng(0)
    while True:
        yield random.integers(0, VOCABULARY, MAX_REPLY_TOKENS).astype(np.int32)


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
