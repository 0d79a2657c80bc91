"""What OpenAI's own models take and refuse, as far as a translated request has to know it.

Known by their names, with or without a prefix as OpenRouter has it (``openai/gpt-5.6``): other servers of OpenAI's APIs
take more, or know less. From OpenAI's reasoning guide: its reasoning models refuse ``max_tokens`` and, while they
reason, sampling parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from kvstet.dialects.request import NO_REASONING, Terms

_OWN = re.compile(r"(?:^|/)(?:gpt-\d|o\d|chatgpt-|codex-)", re.IGNORECASE)
_REASONS = re.compile(r"(?:^|/)(?:gpt-[5-9]|o\d|codex-)", re.IGNORECASE)


def is_openai_model(model: str) -> bool:
    return _OWN.search(model) is not None and "gpt-oss" not in model


def reasons(model: str) -> bool:
    return _REASONS.search(model) is not None


def fitting_terms(model: str, terms: Terms) -> tuple[Terms, list[str]]:
    """The terms without what the model would refuse, and what that was."""
    thinks = terms.reasoning is None or terms.reasoning.effort != NO_REASONING
    lost = [*_sampling(terms)] if reasons(model) and thinks else []
    return (replace(terms, temperature=None, top_p=None) if lost else terms), lost


def _sampling(terms: Terms) -> Iterator[str]:
    if terms.temperature is not None:
        yield "temperature"
    if terms.top_p is not None:
        yield "top_p"
