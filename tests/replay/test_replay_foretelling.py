"""A session set against the documented cache rules of hosted models: no network, and dollars."""

from __future__ import annotations

import pytest
from tests.replay.replay_harness import AT_ONCE, PLAN, SYSTEM, TASK, chat, exchange

from kvstet.context.arranging.optimiser import Optimiser
from kvstet.errors import UnknownProvider
from kvstet.providers.prices import price_of
from kvstet.providers.provider import provider_named
from kvstet.providers.simulator import Ideal, Simulator
from kvstet.replay.foretelling import (
    CACHE_WRITES,
    DOLLARS,
    DOLLARS_BEST,
    DOLLARS_UNCACHED,
    Target,
    foretold,
    target_of,
)
from kvstet.replay.session import Pace, Session, session_of

LONG = {"role": "user", "content": " ".join(f"word{number}" for number in range(4000))}
MODEL = "claude-sonnet-5"


def session(*, seconds_between: float = 5.0) -> Session:
    """Four requests of a conversation that grows."""
    messages = [SYSTEM, LONG]
    exchanges = []
    for number in range(4):
        at = number * seconds_between
        exchanges.append(exchange(number, chat(messages), PLAN, sent=at, over=at + 1))
        messages = [*messages, {"role": "assistant", "content": "Yes."}, {**TASK, "content": f"And {number}?"}]
    return session_of(exchanges)


def test_each_request_takes_what_the_simulator_says():
    provider = provider_named("openai")
    run = foretold(session(), Target(provider, "gpt-5.1"), AT_ONCE)
    rule = provider.rule_for("gpt-5.1", "chat")
    simulator, ideal = Simulator(rule), Ideal(rule)
    for turn, asked in zip(session().turns, run.asked, strict=True):
        body = {**turn.body, "model": "gpt-5.1"}
        usage = simulator.send(body, "chat", at_seconds=asked.at_seconds, model="gpt-5.1")
        best = ideal.send(body, "chat", model="gpt-5.1")
        assert asked.num_prompt_tokens == usage.num_input_tokens
        assert asked.num_reused_tokens == usage.num_cache_read_tokens
        assert asked.num_bound_tokens == (best.num_input_tokens or 0) - (best.num_cache_read_tokens or 0)
        price = price_of(provider, "gpt-5.1")
        assert price is not None
        assert asked.dollars == pytest.approx(
            (usage.num_fresh_tokens or 0) * (price.input or 0)
            + (usage.num_cache_read_tokens or 0) * (price.cache_read or 0)
        )
    assert (run.asked[1].num_reused_tokens or 0) > 4000


def test_a_client_that_marks_nothing_pays_for_all_at_anthropic_unless_kvstet_arranges_it():
    provider = provider_named("anthropic")
    plain = foretold(session(), Target(provider, MODEL), AT_ONCE)
    arranged = foretold(session(), Target(provider, MODEL), AT_ONCE, arranged_by=Optimiser(provider))
    assert plain.values[DOLLARS] == pytest.approx(plain.values[DOLLARS_UNCACHED])
    assert plain.values[CACHE_WRITES] == 0
    assert arranged.values[DOLLARS] < 0.5 * plain.values[DOLLARS]
    assert arranged.values[CACHE_WRITES] > 4000
    assert arranged.values[DOLLARS_BEST] <= arranged.values[DOLLARS]
    assert arranged.server == f"anthropic/{MODEL}, arranged by kvstet"


def test_what_waits_longer_than_an_entry_lives_is_written_again():
    provider = provider_named("anthropic")

    def dollars(pace: Pace) -> float:
        target = Target(provider, MODEL)
        return foretold(session(), target, pace, arranged_by=Optimiser(provider)).values[DOLLARS]

    assert dollars(Pace(3600.0)) > 2 * dollars(AT_ONCE)


def test_recorded_gaps_and_replies_make_the_time():
    run = foretold(session(seconds_between=5.0), target_of("openai/gpt-5.1"), Pace())
    assert [asked.at_seconds for asked in run.asked] == [0.0, 5.0, 10.0, 15.0]


def test_a_request_of_another_dialect_is_put_into_the_providers():
    body = {"model": "m", "instructions": SYSTEM["content"], "input": LONG["content"]}
    responses = session_of([exchange(1, body, path="/v1/responses")])
    (asked,) = foretold(responses, target_of(f"anthropic/{MODEL}"), AT_ONCE).asked
    assert asked.error is None
    assert (asked.num_prompt_tokens or 0) > 4000


def test_a_model_whose_price_nobody_knows_has_tokens_and_no_dollars():
    run = foretold(session(), target_of("openai/nonesuch-1"), AT_ONCE)
    assert DOLLARS not in run.values
    assert all(asked.dollars is None for asked in run.asked)
    assert (run.num_prompt_tokens or 0) > 10_000


def test_without_a_model_the_recorded_one_is_asked():
    body = chat([SYSTEM, LONG]) | {"model": "gpt-5.1"}
    run = foretold(session_of([exchange(1, body)]), target_of("openai"), AT_ONCE)
    assert run.values[DOLLARS] > 0
    assert run.server == "openai"


def test_an_unknown_provider_is_refused_with_those_that_are_known():
    with pytest.raises(UnknownProvider, match="anthropic"):
        target_of("nonesuch/model")
