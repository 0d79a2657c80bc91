"""What the scenarios of one repetition are made of: conversations about real code that share no beginning."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvstet.bench.chats import Chat, Message, calling, result, system, tool, user
from kvstet.bench.text import Text

NUM_HEAD_TOKENS = 20
NUM_OUTPUT_TOKENS = 40
"""Small, so that a laptop comes to an end. What is measured are tokens computed beside tokens needed, and that does not
depend on the size."""

NUM_OPENING_TOKENS = 320
"""What `Stage.opening` has, about."""
NUM_FRAME_TOKENS = 110
"""What a call has beside its output, about."""

TOOLS: tuple[Message, ...] = (
    tool("read", "Read a file of the project.", "path", "lines"),
    tool("edit", "Replace text in a file.", "path", "old", "new"),
)


@dataclass(slots=True)
class Stage:
    """Makes the conversations of one repetition."""

    text: Text
    max_growth_tokens: int
    """How long the conversation gets that grows."""
    size: int = 1
    """How often as long as at least are system prompts and results."""
    _num_calls: int = field(default=0, init=False)

    def opening(self, *, tools: tuple[Message, ...] = TOOLS) -> Chat:
        """A conversation of its own from the first word on, with its first task."""
        return Chat((self.head(), self.task()), tools)

    def head(self, remark: str = "") -> Message:
        rules = self.text.code(NUM_HEAD_TOKENS * self.size)
        return system(f"Session {self.text.word()}. {remark}You are a coding agent. Write code like this:\n{rules}")

    def task(self) -> Message:
        return user(f"Find out what {self.text.name()} is there for, and make it simpler.")

    def step(self, chat: Chat, reasoning: str = "", num_tokens: int | None = None) -> Chat:
        """The model has called a tool, and has been told what came of it."""
        self._num_calls += 1
        call_id, path = f"call_{self._num_calls}", self.text.name()
        called = calling(f"I read {path}.", call_id, "read", {"path": path, "lines": "1-40"}, reasoning)
        return chat.adding(called, result(call_id, self.text.code(num_tokens or NUM_OUTPUT_TOKENS * self.size)))

    def reasoning(self) -> str:
        thought = self.text.code(NUM_OUTPUT_TOKENS * self.size)
        return f"I need to know how {self.text.word()} and {self.text.word()} go together. {thought}"
