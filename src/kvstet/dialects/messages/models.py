"""What the generations of Claude take and refuse, as far as a translated request has to know it.

From Anthropic's migration guide and model pages: manual thinking from 3.7 on; adaptive thinking and no prefill from 4.6
on; no sampling parameters and no manual thinking, but the effort ``xhigh``, from 4.7 on; system messages in the middle
from Opus 4.8 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_NAME = re.compile(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2}))?(?!\d)", re.IGNORECASE)
_NEWEST: tuple[int, int] = (99, 0)


@dataclass(frozen=True, slots=True)
class ModelRules:
    is_claude: bool
    """Its thinking is taken only with its signature."""
    thinking: Literal["adaptive", "budget", "none"]
    takes_xhigh: bool
    """As an effort."""
    takes_sampling: bool
    takes_system_turns: bool
    takes_prefill: bool
    takes_schemas: bool
    """Structured outputs and strict tools."""
    default_max_tokens: int
    """``max_tokens`` has to be there. It is no more than the generation can give."""


OTHER_VENDOR = ModelRules(
    is_claude=False,
    thinking="budget",
    takes_xhigh=True,
    takes_sampling=True,
    takes_system_turns=False,
    takes_prefill=True,
    takes_schemas=False,
    default_max_tokens=32_000,
)
"""Imitators know what the API had for long, and read thinking that nobody signed."""


def rules_of(model: str) -> ModelRules:
    """By its name at Anthropic, Bedrock, Vertex or OpenRouter. A Claude without a number is taken for a new one."""
    if "claude" not in model.lower():
        return OTHER_VENDOR
    match = _NAME.search(model)
    version: tuple[int, int] = (int(match[1]), int(match[2] or 0)) if match else _NEWEST
    return ModelRules(
        is_claude=True,
        thinking="adaptive" if version >= (4, 6) else "budget" if version >= (3, 7) else "none",
        takes_xhigh=version >= (4, 7),
        takes_sampling=version < (4, 7),
        takes_system_turns=version >= (4, 8),
        takes_prefill=version < (4, 6),
        takes_schemas=version >= (4, 5),
        default_max_tokens=32_000 if version >= (3, 7) else 8_192 if version >= (3, 5) else 4_096,
    )
