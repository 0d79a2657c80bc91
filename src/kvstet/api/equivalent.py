"""A conversation's prompt at fidelity ``equivalent``: what the context layer makes of it, rendered, where it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvstet.api.wishes import Wishes
from kvstet.context.equivalent.equivalence import DROPPED, Equivalence
from kvstet.errors import RequestError
from kvstet.types import Prompt, Substitution

Message = dict[str, Any]
Tool = dict[str, Any]

Render = Callable[[list[Message], list[Tool], str | None], Prompt]
"""Messages, tools, and the name of the API key whose replies come back with their reasoning; None: nobody's do.

Raises a RequestError."""

_RESERVED_SHARE = 8
"""So large a part of the context stays free for the reply, unless the request says that it needs less."""


@dataclass(frozen=True, slots=True)
class Room:
    """How long a prompt may be."""

    context_length: int
    max_new_tokens: int | None

    @property
    def num_comfortable_tokens(self) -> int:
        """With room for the reply: for prompts that could be shorter."""
        reserved = self.context_length // _RESERVED_SHARE
        return self.context_length - (reserved if self.max_new_tokens is None else min(self.max_new_tokens, reserved))


def equivalent_prompt(
    messages: list[Message],
    tools: list[Tool],
    wishes: Wishes,
    room: Room,
    *,
    render: Render,
    equivalence: Equivalence,
) -> Prompt:
    """The prompt of an equivalent conversation, or of the one that was sent where there is none that fits.

    Raises what rendering the conversation as it was sent raises.
    """
    prompt = _attempt(messages, tools, wishes, equivalence, render)
    if prompt is not None and _keeps_dropped(prompt) and len(prompt.tokens) > room.num_comfortable_tokens:
        equivalence.give_up(messages, owner=wishes.owner)
        prompt = _attempt(messages, tools, wishes, equivalence, render)
    if prompt is None or len(prompt.tokens) >= room.context_length:
        return replace(render(messages, tools, None), owner=wishes.owner)
    return prompt


def _attempt(
    messages: list[Message], tools: list[Tool], wishes: Wishes, equivalence: Equivalence, render: Render
) -> Prompt | None:
    """None: the template does not take what would be said."""
    said = equivalence.follow(messages, tools, owner=wishes.owner, names=wishes.names)
    try:
        prompt = render(said.messages, said.tools, wishes.owner if said.keeps_reasoning else None)
    except RequestError:
        return None
    return replace(prompt, owner=wishes.owner, substitutions=tuple(_told(said.substitutions, prompt)))


def _keeps_dropped(prompt: Prompt) -> bool:
    return any(substitution.name in DROPPED for substitution in prompt.substitutions)


def _told(substitutions: Sequence[Substitution], prompt: Prompt) -> list[Substitution]:
    """All that the prompt shows otherwise, with what is known of its tokens."""
    num_tokens = {span.index: span.stop - span.start for span in prompt.spans}
    shown = [each for each in substitutions if each.name != "billing-header" or not prompt.masked]
    counted = [
        replace(each, num_tokens=num_tokens.get(each.message)) if each.name in DROPPED else each
        for each in (*shown, *prompt.substitutions)
    ]
    return sorted(counted, key=lambda each: -1 if each.message is None else each.message)
