"""Replies that a request brings along, for replays and measurements: the model reads them, and draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct, field

from kvstet.chat.deltas import ParsedCall, ParsedReply
from kvstet.errors import InvalidRequest
from kvstet.types import Tokenizer

FIELD = "kvstet_reply"


class ForcedCall(Struct, forbid_unknown_fields=True):
    name: str
    args_raw: str = "{}"
    """JSON."""


class ForcedReply(Struct, forbid_unknown_fields=True):
    """What the reply shall be: token by token, or as what it says."""

    tokens: Annotated[list[int], Meta(min_length=1)] | None = None
    reasoning: str = ""
    text: str = ""
    calls: list[ForcedCall] = field(default_factory=list[ForcedCall])

    def __post_init__(self) -> None:
        if self.tokens is not None and (self.reasoning or self.text or self.calls):
            raise ValueError("it is either tokens, or reasoning, text and calls")

    @property
    def parsed(self) -> ParsedReply:
        calls = tuple(ParsedCall(call.name, call.args_raw) for call in self.calls)
        return ParsedReply(self.reasoning, self.text, calls)


def given_tokens(tokens: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Raises InvalidRequest for ids that the model does not have."""
    unknown = next((token for token in tokens if not 0 <= token < tokenizer.num_tokens), None)
    if unknown is not None:
        raise InvalidRequest(f"{FIELD}: the model has no token {unknown}.", param=FIELD)
    return tuple(tokens)


def forced_text(reply: ForcedReply, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The reply to bare text, token by token. Raises InvalidRequest."""
    if reply.tokens is not None:
        return given_tokens(reply.tokens, tokenizer)
    if reply.reasoning or reply.calls:
        raise InvalidRequest(f"{FIELD}: what follows a bare text is text.", param=FIELD)
    tokens: list[int] = tokenizer.tokenize(reply.text, add_special=False, parse_special=False).tolist()
    end = tokenizer.special_tokens.get(tokenizer.token_text("eos"), min(tokenizer.end_tokens, default=None))
    return tuple(tokens if end is None else [*tokens, end])
