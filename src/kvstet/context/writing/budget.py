"""How long a prompt may become."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Of one model. Lengths are tokens; shares are of the room for a prompt."""

    context_length: int = 128_000
    num_reserved_tokens: int = 8_000
    """For the reply."""
    keep_share: float = 0.2
    """So much of the room the latest messages may take that stay as they are when the rest is summarised."""

    def __post_init__(self) -> None:
        if not 0 <= self.num_reserved_tokens < self.context_length:
            raise ValueError("The reply's reserve must be smaller than the context.")
        if not 0 <= self.keep_share < 1:
            raise ValueError("keep_share is a part of the room: at least 0 and below 1.")

    @property
    def num_prompt_tokens(self) -> int:
        """The longest prompt."""
        return self.context_length - self.num_reserved_tokens

    @property
    def num_kept_tokens(self) -> int:
        return int(self.num_prompt_tokens * self.keep_share)
