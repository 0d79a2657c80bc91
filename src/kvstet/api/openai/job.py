"""A request that was understood: what to ask of the engine, and how to answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvstet import __version__
from kvstet.api.openai.requests import GenerationFields
from kvstet.api.openai.sampling import sampling_of, stops_of, with_seed_of_choice
from kvstet.api.ports import Services
from kvstet.engine.messages import Generate
from kvstet.errors import ContextOverflow, InvalidRequest
from kvstet.types import Prompt, RequestId

_MAX_CHOICES = 64


@dataclass(frozen=True, slots=True)
class Head:
    """What every chunk of a response repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str = f"kvstet-{__version__}"


@dataclass(frozen=True, slots=True)
class Job:
    """``requests`` hold ``num_choices`` for each prompt, in the order of the response's choices."""

    head: Head
    prompts: tuple[Prompt, ...]
    requests: tuple[Generate, ...]
    num_choices: int
    stops: tuple[str, ...]
    is_streamed: bool
    includes_usage: bool
    echoes: bool


def make_job(
    services: Services,
    fields: GenerationFields,
    prompts: Sequence[Prompt],
    *,
    id_prefix: str,
    prompt_field: str,
    max_new_tokens: int | None,
    num_logprobs: int | None,
    echoes: bool = False,
) -> Job:
    """Raises a RequestError for what the engine could not serve; ``prompt_field`` is where the prompts came from."""
    # One token more, unless no reply is asked for. The engine says the same, but knows no field to name.
    num_reply_tokens = int(max_new_tokens != 0)
    for prompt in prompts:
        _check_length(prompt, num_reply_tokens, services.engine.info.context_length, prompt_field)
    num_choices = fields.n or 1
    if num_choices * len(prompts) > _MAX_CHOICES:
        raise InvalidRequest(f"One request may ask for at most {_MAX_CHOICES} choices in all.", param="n")
    head = Head(f"{id_prefix}{uuid.uuid4().hex}", int(time.time()), fields.model or services.model_names[0])
    sampling = sampling_of(fields, services.tokenizer, services.schema_to_grammar)

    def request(prompt: Prompt, number: int) -> Generate:
        return Generate(
            RequestId(f"{head.id}:{number}"),
            prompt.tokens,
            prompt.cuts,
            max_new_tokens,
            with_seed_of_choice(sampling, number % num_choices),
            num_logprobs,
            bool(fields.ignore_eos),
            fields.cache_prompt is not False,
            cut_kinds=prompt.cut_kinds,
            is_streamed=bool(fields.stream),
        )

    return Job(
        head=head,
        prompts=tuple(prompts),
        requests=tuple(_requests(prompts, num_choices, request)),
        num_choices=num_choices,
        stops=stops_of(fields),
        is_streamed=bool(fields.stream),
        includes_usage=bool(fields.stream_options and fields.stream_options.include_usage),
        echoes=echoes,
    )


def _requests(
    prompts: Sequence[Prompt], num_choices: int, request: Callable[[Prompt, int], Generate]
) -> list[Generate]:
    repeated = [prompt for prompt in prompts for _ in range(num_choices)]
    return [request(prompt, number) for number, prompt in enumerate(repeated)]


def _check_length(prompt: Prompt, num_reply_tokens: int, context_length: int, field: str) -> None:
    num_tokens = len(prompt.tokens)
    if num_tokens == 0:
        raise InvalidRequest("The prompt is empty.", param=field)
    if num_tokens + num_reply_tokens > context_length:
        raise ContextOverflow(num_prompt_tokens=num_tokens, max_prompt_tokens=context_length, param=field)
