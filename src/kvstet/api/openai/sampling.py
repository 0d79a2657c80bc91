"""From the fields of a request to `Sampling`: the one place that knows defaults and what excludes what."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from kvstet.api.openai.requests import BiasEntry, GenerationFields
from kvstet.api.ports import SchemaToGrammar
from kvstet.errors import InvalidRequest
from kvstet.types import DEFAULT_SAMPLING, Sampling, Tokenizer

_PLAIN_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repeat_last_n",
    "frequency_penalty",
    "presence_penalty",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
    "dry_penalty_last_n",
    "xtc_probability",
    "xtc_threshold",
)

_NUM_SEEDS = 2**32 - 1
"""libllama's seeds are 32 bits wide, and the highest one means a random seed."""

_RANDOM_SEED = -1
"""What llama-server's clients send for a fresh seed."""


def sampling_of(
    fields: GenerationFields,
    tokenizer: Tokenizer,
    schema_to_grammar: SchemaToGrammar,
    defaults: Sampling = DEFAULT_SAMPLING,
) -> Sampling:
    """How the request wants tokens chosen. InvalidRequest or GrammarError where its fields make no sense."""
    given = {name: value for name in _PLAIN_FIELDS if (value := getattr(fields, name)) is not None}
    breakers = fields.dry_sequence_breakers
    return replace(
        defaults,
        **given,
        dry_sequence_breakers=defaults.dry_sequence_breakers if breakers is None else tuple(breakers),
        seed=_seed(fields.seed),
        logit_bias=_logit_bias(fields.logit_bias, tokenizer),
        grammar=_grammar(fields, schema_to_grammar),
    )


def stops_of(fields: GenerationFields) -> tuple[str, ...]:
    """Stop strings, without empty ones and repetitions."""
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    return tuple(dict.fromkeys(stop for stop in stops if stop))


def token_limit(*limits: int | None) -> int | None:
    """The first limit that was given; -1 is llama-server's way to say that there is none."""
    limit = next((limit for limit in limits if limit is not None), None)
    return None if limit is None or limit < 0 else limit


def _seed(seed: int | None) -> int | None:
    return None if seed is None or seed == _RANDOM_SEED else seed % _NUM_SEEDS


def _grammar(fields: GenerationFields, schema_to_grammar: SchemaToGrammar) -> str | None:
    schema = _schema(fields)
    if schema is None:
        return fields.grammar or None
    if fields.grammar:
        raise InvalidRequest("Send either a grammar or a JSON schema, not both.", param="grammar")
    return schema_to_grammar(schema)


def _schema(fields: GenerationFields) -> dict[str, Any] | None:
    wanted = fields.response_format
    if wanted is None or wanted.type == "text":
        return fields.json_schema
    if wanted.type == "json_object":
        return wanted.schema or {"type": "object"}
    schema = wanted.schema if wanted.json_schema is None else wanted.json_schema.schema
    if schema is None:
        raise InvalidRequest(
            "A response_format of type json_schema needs an object as its schema.",
            param="response_format.json_schema.schema",
        )
    return schema


def _logit_bias(
    biases: dict[str, float | bool] | list[BiasEntry] | None, tokenizer: Tokenizer
) -> tuple[tuple[int, float], ...]:
    entries: Iterable[tuple[int | str, float | bool]] = biases.items() if isinstance(biases, dict) else biases or ()
    return tuple((token, _bias(bias)) for name, bias in entries for token in _biased_tokens(name, tokenizer))


def _bias(bias: float | bool) -> float:
    """False forbids the token; true asks for nothing."""
    if isinstance(bias, bool):
        return 0.0 if bias else -math.inf
    return float(bias)


def _biased_tokens(name: int | str, tokenizer: Tokenizer) -> list[int]:
    """A token by its id, or the tokens of a text."""
    try:
        token = int(name)
    except ValueError:
        return tokenizer.tokenize(str(name), add_special=False, parse_special=True).tolist()
    if not 0 <= token < tokenizer.num_tokens:
        raise InvalidRequest(f"Invalid 'logit_bias': the model has no token {token}.", param="logit_bias")
    return [token]
