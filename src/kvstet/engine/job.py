"""One request on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from kvstet.cache.plan import Wait
from kvstet.cache.tree import Branch, Node
from kvstet.engine.detour import Detour
from kvstet.engine.messages import Generate
from kvstet.engine.model import Sampler
from kvstet.types import RequestId, Tokens


@dataclass(eq=False, slots=True)
class Job:
    """A request, and how far it has come. Waits, then computes its prompt, then generates."""

    request: Generate
    submitted: float
    """Engine clock, seconds."""
    deadline: float | None
    tokens: Tokens
    """What must be decoded before the next token is sampled: the prompt; after a preemption, the reply so far too."""
    wait: Wait | None = None
    node: Node | None = None
    """Where the tokens end in the tree; pinned while the job lives. None while its branch is a stray."""
    former: Tokens | None = None
    """The conversation that it departs from, where moved state will do."""
    detour: Detour | None = None
    """How it is answered approximately; None: exactly."""
    exact_because: str | None = None
    """Why it is answered exactly, though it need not be."""
    num_known: int = 0
    branch: Branch | None = None
    sampler: Sampler | None = None
    generated: list[int] = field(default_factory=list[int])
    started: float | None = None
    """When it was first admitted, its state loaded."""
    first_token: float | None = None

    @property
    def id(self) -> RequestId:
        return self.request.id

    @property
    def num_left(self) -> int:
        """Prompt tokens that are still to be computed."""
        return len(self.tokens) - (self.branch.length if self.branch else 0)

    @property
    def is_computing(self) -> bool:
        return self.num_left > 0

    def pending_tokens(self, count: int) -> Tokens:
        """The next tokens to decode: of the prompt, or the one that was sampled last."""
        assert self.branch is not None
        if self.is_computing:
            return self.tokens[self.branch.length : self.branch.length + count]
        return np.array(self.generated[-1:], np.int32)

    def all_tokens(self) -> Tokens:
        """Prompt and reply."""
        return np.concatenate([self.request.tokens, np.array(self.generated, np.int32)])
