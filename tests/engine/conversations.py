"""Sessions of an imagined agent as token ids, with the edits that real ones make; see `test_lean.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

VOCAB_SIZE = 120
"""Words are below; role markers are above."""

MARKERS = {"system": 120, "user": 121, "assistant": 122, "tool": 123}
END = 124
REASONING, REASONING_END = 125, 126


@dataclass(frozen=True)
class Message:
    """Renders as ``marker, words, END``; reasoning goes in front of an assistant's words."""

    role: str
    words: tuple[int, ...]
    reasoning: tuple[int, ...] = ()

    @property
    def tokens(self) -> list[int]:
        thought = [REASONING, *self.reasoning, REASONING_END] if self.reasoning else []
        return [MARKERS[self.role], *thought, *self.words, END]


@dataclass(frozen=True)
class Conversation:
    """Messages, rendered with the marker that asks for a reply."""

    messages: tuple[Message, ...] = ()

    def add(self, *messages: Message) -> Conversation:
        return Conversation(self.messages + messages)

    def change(self, index: int, message: Message) -> Conversation:
        return Conversation((*self.messages[:index], message, *self.messages[index + 1 :]))

    def without(self, index: int) -> Conversation:
        return Conversation(self.messages[:index] + self.messages[index + 1 :])

    def with_inserted(self, index: int, message: Message) -> Conversation:
        return Conversation((*self.messages[:index], message, *self.messages[index:]))

    @property
    def tokens(self) -> list[int]:
        return [token for message in self.messages for token in message.tokens] + [MARKERS["assistant"]]

    @property
    def cuts(self) -> tuple[int, ...]:
        return tuple(np.cumsum([len(message.tokens) for message in self.messages]).tolist())


Ask = Callable[[Conversation], list[int]]
"""Runs a request and returns the reply's tokens."""


@dataclass
class Agent:
    """Talks to whatever `ask` is, and edits its history on the way."""

    ask: Ask
    seed: int = 0
    history: Conversation = field(default_factory=Conversation)

    def __post_init__(self) -> None:
        self._random = np.random.default_rng(self.seed)
        self.history = Conversation((self.system(),))

    def words(self, n: int) -> tuple[int, ...]:
        return tuple(self._random.integers(0, VOCAB_SIZE, n).tolist())

    def message(self, role: str, n: int) -> Message:
        return Message(role, self.words(n))

    def system(self) -> Message:
        return self.message("system", 400)

    def say(self, n: int = 60, role: str = "user") -> None:
        """One exchange: a message, and the reply, of which the first half is taken for reasoning."""
        self.history = self.history.add(self.message(role, n))
        reply = tuple(self.ask(self.history))
        self.history = self.history.add(Message("assistant", reply))

    def work(self, num_steps: int = 3) -> None:
        """A user turn and some tool calls."""
        self.say()
        for _ in range(num_steps):
            self.say(200, "tool")


def append(agent: Agent) -> None:
    for _ in range(4):
        agent.work()


def strip(agent: Agent) -> None:
    """Replies lose their first half once the user speaks again, as templates strip reasoning."""
    for _ in range(4):
        agent.work()
        agent.history = Conversation(
            tuple(
                replace(message, words=message.words[len(message.words) // 2 :])
                if message.role == "assistant"
                else message
                for message in agent.history.messages
            )
        )


def prune(agent: Agent) -> None:
    """Old tool outputs become stubs."""
    for _ in range(4):
        agent.work(4)
        old = [
            i for i, message in enumerate(agent.history.messages) if message.role == "tool" and len(message.words) > 50
        ]
        for index in old[:-2]:
            agent.history = agent.history.change(index, Message("tool", (1, 2, 3)))


def insert(agent: Agent) -> None:
    for _ in range(3):
        agent.work()
        agent.history = agent.history.with_inserted(len(agent.history.messages) // 2, agent.message("user", 30))


def remove(agent: Agent) -> None:
    for _ in range(3):
        agent.work()
        agent.history = agent.history.without(len(agent.history.messages) // 2)


def rewind_and_come_back(agent: Agent) -> None:
    agent.work(4)
    first = agent.history
    agent.history = Conversation(first.messages[:-4])
    agent.work(2)
    agent.history = first
    agent.work(2)


def side_requests(agent: Agent) -> None:
    for turn in range(4):
        agent.work()
        title = Conversation((Message("system", tuple(range(50))), agent.message("user", 100 + turn)))
        agent.ask(title)


def sub_agents(agent: Agent) -> None:
    """Children with a system prompt of their own, and one that inherits the whole history."""
    for turn in range(3):
        agent.work()
        child = Agent(agent.ask, seed=agent.seed + 100)
        child.work(2)
        agent.ask(agent.history.add(agent.message("user", 40 + turn)))


def compaction(agent: Agent) -> None:
    """A summary is asked for on the live history; then head, summary and the last messages go on."""
    for _ in range(2):
        agent.work(4)
        summary = agent.ask(agent.history.add(agent.message("user", 50)))
        agent.history = Conversation(
            (agent.history.messages[0], Message("user", tuple(summary)), *agent.history.messages[-2:])
        )
        agent.work(2)


def tool_reorder(agent: Agent) -> None:
    """The last third of the system prompt, where the tools are, changes its order."""
    for _ in range(2):
        agent.work(4)
        system = agent.history.messages[0].words
        third = len(system) // 3
        mixed = system[: 2 * third] + tuple(reversed(system[2 * third :]))
        agent.history = agent.history.change(0, Message("system", mixed))


SCENARIOS = (
    append,
    strip,
    prune,
    insert,
    remove,
    rewind_and_come_back,
    side_requests,
    sub_agents,
    compaction,
    tool_reorder,
)


def random_edits(agent: Agent, num_requests: int) -> Iterator[Conversation]:
    """Requests of a session that appends, rewinds, forks, edits and comes back at random."""
    past: list[Conversation] = [agent.history]
    for _ in range(num_requests):
        base = past[int(agent._random.integers(max(0, len(past) - 6), len(past)))]
        yield _mutated(agent, base)
        past.append(agent.history)


def _mutated(agent: Agent, base: Conversation) -> Conversation:
    random = np.random.default_rng(agent.words(1)[0] + len(base.messages))
    index = int(random.integers(0, len(base.messages)))
    choice = int(random.integers(0, 6))
    if choice == 0:
        base = Conversation(base.messages[: max(1, index)])
    elif choice == 1:
        message = base.messages[index]
        base = base.change(index, replace(message, words=(*message.words[: len(message.words) // 2], 7)))
    elif choice == 2 and len(base.messages) > 2:
        base = base.without(max(1, index))
    return base.add(agent.message("user", int(random.integers(1, 40))))
