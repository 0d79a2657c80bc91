"""What a prompt would cost, were it asked for now."""

from __future__ import annotations

from kvstet.cache.cache import Cache
from kvstet.engine.approximation import Approximator
from kvstet.engine.detour import Detour, former_of
from kvstet.engine.messages import Appraise, Appraised
from kvstet.types import Reuse


def appraised(question: Appraise, cache: Cache, approximator: Approximator) -> Appraised:
    """The account that a request of these tokens would get if it were alone, and the time until its first token."""
    num_tokens = len(question.tokens)
    plan = cache.appraise(question.tokens) if question.cache_prompt else cache.plan_cold(question.tokens)
    # Whoever is computing these very tokens is waited for, and then forked.
    num_awaited = plan.wait.stop if plan.wait else 0
    resume = max(plan.resume, num_awaited)
    reuse = Reuse(
        num_reused_tokens=num_awaited or plan.num_reused_tokens,
        num_loaded_tokens=0 if num_awaited else plan.num_loaded_tokens,
        num_shifted_tokens=0,
        num_computed_tokens=num_tokens - resume,
        num_known_tokens=plan.match.length,
    )
    rates = cache.policy.rates
    if question.fidelity == "approximate" and question.cache_prompt and not num_awaited:
        found = approximator.plan(question.tokens, former_of(plan.match), plan)
        if isinstance(found, Detour):
            # Where its tokens lie makes little difference, and moving state takes next to none.
            seconds = rates.compute_seconds(num_tokens - found.reuse.num_computed_tokens, num_tokens)
            return Appraised(question.id, found.reuse, plan.load_seconds(rates), seconds)
        exact_because = found
    else:
        exact_because = None
    return Appraised(
        question.id, reuse, plan.load_seconds(rates), rates.compute_seconds(resume, num_tokens), exact_because
    )
