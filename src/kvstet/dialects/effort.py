"""How much a model is to think: OpenAI's words for it, and Anthropic's budgets in tokens.

A budget is a share of what the reply may have at most. The shares, and that a budget has at least 1,024 tokens (which
Anthropic demands), are those by which OpenRouter translates between the two (openrouter.ai/docs, "Reasoning Tokens").
``max`` was not there then; it gets as much as ``xhigh``.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvstet.dialects.request import NO_REASONING, Effort, Reasoning

_SHARES: Mapping[Effort, float] = {
    "minimal": 0.1,
    "low": 0.2,
    "medium": 0.5,
    "high": 0.8,
    "xhigh": 0.95,
    "max": 0.95,
}
_TOLD_BACK = ("minimal", "low", "medium", "high", "xhigh")
_MIN_BUDGET_TOKENS = 1024
_TYPICAL_OUTPUT_TOKENS = 32_000
"""Where the request has no limit."""


def effort_of(reasoning: Reasoning, max_output_tokens: int | None) -> Effort | None:
    """In OpenAI's words; None: as the model sees fit."""
    if reasoning.effort is not None or reasoning.budget_tokens is None:
        return reasoning.effort
    if reasoning.budget_tokens == 0:
        return NO_REASONING
    share = reasoning.budget_tokens / (max_output_tokens or _TYPICAL_OUTPUT_TOKENS)
    return min(_TOLD_BACK, key=lambda effort: abs(_SHARES[effort] - share))


def budget_of(reasoning: Reasoning, max_output_tokens: int) -> int | None:
    """In tokens, less than the reply may have, as Anthropic demands; None where too few are left for that."""
    budget = reasoning.budget_tokens
    if budget is None:
        budget = int(max_output_tokens * _SHARES.get(reasoning.effort or "medium", _SHARES["medium"]))
    budget = max(_MIN_BUDGET_TOKENS, min(budget, max_output_tokens - 1))
    return budget if budget < max_output_tokens else None
