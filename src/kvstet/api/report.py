"""What a response says about its costs: OpenAI's usage, llama-server's timings, and the sources of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kvstet.api.generation import Account, Generation
from kvstet.api.job import Job
from kvstet.api.sessions import Visit, edit_as_json
from kvstet.edits.verdict import Verdict, refused, verdict
from kvstet.types import Fidelity, Prompt, Reuse


@dataclass(frozen=True, slots=True)
class Report:
    """The costs of one HTTP request, over all its prompts and choices."""

    reuse: Reuse
    """Of each prompt's first choice, summed: further choices share the prompt and cost nothing."""
    queue_seconds: float
    load_seconds: float
    compute_seconds: float
    decode_seconds: float
    num_new_tokens: int
    verdict: Verdict
    """Of the first prompt."""
    prompt: Prompt
    """The first."""
    exact_because: str | None = None
    """See `kvstet.engine.messages.Started`; of the first prompt."""

    @property
    def fidelity(self) -> Fidelity:
        """What was really done."""
        if self.reuse.num_shifted_tokens:
            return "approximate"
        return "equivalent" if self.prompt.substitutions else "exact"

    @property
    def usage(self) -> dict[str, Any]:
        num_prompt = self.reuse.num_prompt_tokens
        return {
            "prompt_tokens": num_prompt,
            "completion_tokens": self.num_new_tokens,
            "total_tokens": num_prompt + self.num_new_tokens,
            "prompt_tokens_details": {"cached_tokens": self.reuse.num_cached_tokens},
        }

    @property
    def timings(self) -> dict[str, Any]:
        """As llama-server has them: ``prompt_n`` is what was computed, ``cache_n`` what was not."""
        return {
            "cache_n": self.reuse.num_cached_tokens,
            **_rates("prompt", self.reuse.num_computed_tokens, self.compute_seconds),
            **_rates("predicted", self.num_new_tokens, self.decode_seconds),
        }

    @property
    def kvstet(self) -> dict[str, Any]:
        """The four sources add up to the prompt."""
        return {
            "reused": self.reuse.num_reused_tokens,
            "loaded": self.reuse.num_loaded_tokens,
            "shifted": self.reuse.num_shifted_tokens,
            "computed": self.reuse.num_computed_tokens,
            "known": self.reuse.num_known_tokens,
            "queue_seconds": self.queue_seconds,
            "load_seconds": self.load_seconds,
            "compute_seconds": self.compute_seconds,
            "decode_seconds": self.decode_seconds,
            "fidelity": self.fidelity,
            **({"exact_because": self.exact_because} if self.exact_because else {}),
            "echoed": self.prompt.num_echoed_messages,
            "masked": list(self.prompt.masked),
            "substitutions": [asdict(substitution) for substitution in self.prompt.substitutions],
            "verdict": self.verdict.sentence,
            "edits": [edit_as_json(edit) for edit in self.verdict.edits],
        }


def report_of(job: Job, generation: Generation) -> Report:
    """What a job's generation, which is over, has cost; noted among the latest sessions, so ask for it once."""
    report = _report(job, generation)
    if generation.visit is not None:
        generation.visit.close(report)
    return report


def _report(job: Job, generation: Generation) -> Report:
    terms = job.terms
    leads = generation.accounts[:: terms.num_choices]
    prompt = job.prompts[0]
    return Report(
        reuse=_total([lead.reuse for lead in leads]),
        queue_seconds=max(lead.queue_seconds for lead in leads),
        load_seconds=sum(lead.load_seconds for lead in leads),
        compute_seconds=sum(lead.compute_seconds for lead in leads),
        decode_seconds=max(account.decode_seconds for account in generation.accounts),
        num_new_tokens=sum(account.num_new_tokens for account in generation.accounts),
        verdict=_verdict(leads[0], prompt, generation.visit) if terms.uses_cache else refused(leads[0].reuse),
        prompt=prompt,
        exact_because=leads[0].exact_because,
    )


def _verdict(lead: Account, prompt: Prompt, visit: Visit | None) -> Verdict:
    if visit is None:
        return verdict(lead.reuse, prompt.spans)
    return visit.verdict(lead.reuse, lead.compute_seconds)


def _total(parts: Sequence[Reuse]) -> Reuse:
    return Reuse(
        sum(part.num_reused_tokens for part in parts),
        sum(part.num_loaded_tokens for part in parts),
        sum(part.num_shifted_tokens for part in parts),
        sum(part.num_computed_tokens for part in parts),
        sum(part.num_known_tokens for part in parts),
    )


def _rates(name: str, count: int, seconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": count,
        f"{name}_ms": seconds * 1000,
        f"{name}_per_token_ms": seconds * 1000 / count if count else 0.0,
        f"{name}_per_second": count / seconds if seconds > 0 else 0.0,
    }
