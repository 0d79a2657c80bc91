"""`/v1/kvstet/plan`: what a request would cost, in whichever dialect it is written, without running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Protocol, cast, get_args

from msgspec import UNSET, Struct, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from kvstet.api.body import decode, in_worker
from kvstet.api.envelopes import json_response
from kvstet.api.exchange import exchange_of
from kvstet.api.job import Job
from kvstet.api.ports import Served, Services
from kvstet.api.sessions import edit_as_json, sent_by
from kvstet.api.wishes import Wishes, wishes_of
from kvstet.edits.verdict import Verdict, explained, verdict
from kvstet.engine.messages import Appraise, Appraised
from kvstet.errors import InvalidRequest
from kvstet.types import Fidelity


class Understood(Protocol):
    """A request that was understood."""

    @property
    def job(self) -> Job: ...


class Understand(Protocol):
    """Reads a request of one dialect. Raises a RequestError. Where nothing would be generated: a dictionary."""

    def __call__(self, body: bytes, id: str, wishes: Wishes, served: Served) -> Understood | dict[str, Any]: ...


class _Shape(Struct):
    """What tells the dialects apart."""

    messages: Any = UNSET
    input: Any = UNSET
    prompt: Any = UNSET
    system: Any = UNSET
    tools: Any = UNSET
    options: Any = UNSET


@dataclass(frozen=True, slots=True)
class Planned:
    """What a request would cost at one fidelity, over all its prompts."""

    job: Job
    appraisals: tuple[Appraised, ...]

    @property
    def as_json(self) -> dict[str, Any]:
        reuses = [appraisal.reuse for appraisal in self.appraisals]
        load_seconds = sum(appraisal.load_seconds for appraisal in self.appraisals)
        compute_seconds = sum(appraisal.compute_seconds for appraisal in self.appraisals)
        return {
            "prompt_tokens": sum(reuse.num_prompt_tokens for reuse in reuses),
            "reused": sum(reuse.num_reused_tokens for reuse in reuses),
            "loaded": sum(reuse.num_loaded_tokens for reuse in reuses),
            "shifted": sum(reuse.num_shifted_tokens for reuse in reuses),
            "computed": sum(reuse.num_computed_tokens for reuse in reuses),
            "load_seconds": load_seconds,
            "compute_seconds": compute_seconds,
            "seconds": load_seconds + compute_seconds,
            **({"exact_because": self.lead.exact_because} if self.lead.exact_because else {}),
            "substitutions": [asdict(each) for prompt in self.job.prompts for each in prompt.substitutions],
        }

    @property
    def tokens(self) -> dict[str, Any]:
        """Of the first prompt, and of the reply to it that the request brings along."""
        first = self.job.requests[0]
        return {"tokens": first.tokens.tolist(), "reply_tokens": list(first.forced)}

    @property
    def lead(self) -> Appraised:
        """Of the first prompt."""
        return self.appraisals[0]


class Planning:
    """The endpoint. ``dialects`` read what clients would send elsewhere."""

    def __init__(self, services: Services, dialects: Mapping[str, Understand]) -> None:
        self._services = services
        self._dialects = dialects

    async def plan(self, request: Request, body: bytes, served: Served) -> Response:
        dialect = await self._dialect(request, body)
        # What is remembered of conversations must not learn of a request that nobody sent.
        unseen = replace(served, equivalence=served.equivalence.draft())
        wishes = wishes_of(request)
        understand = partial(self._dialects[dialect], body, exchange_of(request).id)
        jobs: dict[bool, Job] = {}
        plans: dict[Fidelity, Planned] = {}
        for fidelity in get_args(Fidelity):
            # What takes a secret out is exact, whatever else it wishes, and a plan forgets nothing.
            served_at: Fidelity = "exact" if wishes.redacts else fidelity
            at = replace(wishes, fidelity=served_at, redacts=False)
            if at.substitutes not in jobs:
                understood = await in_worker(len(body), partial(understand, at, unseen))
                if isinstance(understood, dict):
                    raise InvalidRequest("The request would generate nothing.")
                jobs[at.substitutes] = understood.job
            plans[fidelity] = await _planned(jobs[at.substitutes], served, served_at)
        told = self._verdict(request, plans[wishes.fidelity])
        asks_tokens = request.query_params.get("tokens") == "true"
        return json_response(
            {
                "object": "kvstet.plan",
                "dialect": dialect,
                "model": served.names[0],
                "fidelity": wishes.fidelity,
                "plans": {fidelity: planned.as_json for fidelity, planned in plans.items()},
                "verdict": told.sentence,
                "edits": [edit_as_json(edit) for edit in told.edits],
                **(plans[wishes.fidelity].tokens if asks_tokens else {}),
            }
        )

    async def _dialect(self, request: Request, body: bytes) -> str:
        named = request.query_params.get("dialect")
        if named is None:
            return _dialect_of(await in_worker(len(body), partial(decode, body, _Shape)), request.headers)
        if named not in self._dialects:
            raise InvalidRequest(f"dialect is one of {', '.join(self._dialects)}.", param="dialect")
        return named

    def _verdict(self, request: Request, planned: Planned) -> Verdict:
        job, lead = planned.job, planned.lead
        if job.snapshot is None:
            return verdict(lead.reuse, job.prompts[0].spans)
        place = self._services.sessions.peek(sent_by(request, job.snapshot), job.terms.wishes)
        return explained(place, job.snapshot, lead.reuse, lead.compute_seconds)


async def _planned(job: Job, served: Served, fidelity: Fidelity) -> Planned:
    firsts = job.requests[:: job.terms.num_choices]
    questions = [Appraise(each.id, each.tokens, each.cache_prompt, fidelity) for each in firsts]
    return Planned(job, tuple([await served.engine.appraise(question) for question in questions]))


def _dialect_of(shape: _Shape, headers: Mapping[str, str]) -> str:
    """By the fields that only one of the dialects has; a chat that could be of several reads the same in all."""
    if not isinstance(shape.input, UnsetType):
        return "responses"
    if isinstance(shape.messages, UnsetType):
        return "completions"
    if "anthropic-version" in headers or not isinstance(shape.system, UnsetType) or _has_schemas(shape.tools):
        return "messages"
    return "chat" if isinstance(shape.options, UnsetType) else "ollama"


def _has_schemas(tools: object) -> bool:
    listed = cast("Sequence[object]", tools) if isinstance(tools, list) else ()
    return any(isinstance(tool, dict) and "input_schema" in tool for tool in listed)
