"""Simulated caches: each test quotes the rule that it checks; what is not in quotes is from providers.md."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from tests.providers.prompts import LONG_MARK, MARK, Body, block, chat_body, messages_body, words

from kvstet.errors import InvalidRequest
from kvstet.providers.estimate import num_tokens
from kvstet.providers.provider import CacheRule, provider_named, providers
from kvstet.providers.simulator import Ideal, Simulator, best_possible
from kvstet.types import Usage

CLAUDE = provider_named("anthropic").rule_for("claude-sonnet-5")
GPT = provider_named("openai").rule_for("gpt-5.6-sol", "responses")
OLD_GPT = provider_named("openai").rule_for("gpt-5.2")
DEEPSEEK = provider_named("deepseek").rule_for("deepseek-v4-pro")


def read(usage: Usage) -> int:
    assert usage.num_cache_read_tokens is not None
    return usage.num_cache_read_tokens


def written(usage: Usage) -> int:
    assert usage.num_cache_write_tokens is not None
    return usage.num_cache_write_tokens


def both(usage: Usage) -> tuple[int, int]:
    return read(usage), written(usage)


HEAD = words(2000, "head")
PER_MESSAGE = 3
"""Tokens that say who speaks: <user>, <tool>."""


def claude(*turns: list[Body], head: str = HEAD, **more: Any) -> Body:
    return messages_body(*turns, system=[block(head, **MARK)], **more)


# Anthropic


def test_nothing_is_cached_unless_it_is_marked() -> None:
    """providers.md: Anthropic, automatic? opt-in."""
    simulator = Simulator(CLAUDE)
    body = messages_body([block("hi")], system=[block(HEAD)])
    assert [both(simulator.send(body, "messages")) for _ in range(2)] == [(0, 0), (0, 0)]


def test_what_is_marked_is_written_once_and_then_read() -> None:
    """ "cache_control ... everything up to and including that block"."""
    simulator = Simulator(CLAUDE)
    first, second = (simulator.send(claude([block(text)]), "messages") for text in ("one", "another"))
    assert both(first) == (0, 2000 + PER_MESSAGE)
    assert both(second) == (2000 + PER_MESSAGE, 0)
    assert second.num_fresh_tokens == (second.num_input_tokens or 0) - 2003


@pytest.mark.parametrize(("number", "is_cached"), [(1020, False), (1021, True)])
def test_shorter_prefixes_than_the_minimum_are_not_cached(number: int, is_cached: bool) -> None:
    """providers.md: 1,024 (Opus 4.8, Sonnet 4.5-5)."""
    simulator = Simulator(CLAUDE)
    body = claude([block("hi")], head=words(number))
    assert bool(written(simulator.send(body, "messages"))) is is_cached
    assert bool(read(simulator.send(body, "messages"))) is is_cached


def test_the_minimum_counts_all_that_stands_before_the_mark() -> None:
    """ "the minimum cacheable prompt length" is of the prefix, not of the block."""
    simulator = Simulator(CLAUDE)
    body = messages_body([block(words(600, "turn"), **MARK)], system=[block(words(600))])
    assert written(simulator.send(body, "messages")) == 1200 + 2 * PER_MESSAGE


def test_five_marks_are_refused() -> None:
    """providers.md: <=4 breakpoints. The API: "A maximum of 4 blocks with cache_control may be provided. Found 5."."""
    body = claude(*[[block(str(turn), **MARK)] for turn in range(4)])
    with pytest.raises(InvalidRequest, match=r"A maximum of 4 blocks with cache_control may be provided\. Found 5\."):
        Simulator(CLAUDE).send(body, "messages")


def test_the_mark_of_the_whole_request_is_one_of_the_four() -> None:
    """The anthropic SDK: "Top-level cache control automatically applies a cache_control marker to the last cacheable
    block in the request"."""
    simulator = Simulator(CLAUDE)
    body = messages_body([block(words(1500, "turn"))], **MARK)
    assert written(simulator.send(body, "messages")) == 1503
    full = claude([block("1", **MARK)], [block("2", **MARK)], [block("3", **MARK)], [block("4")], **MARK)
    with pytest.raises(InvalidRequest, match="Found 5"):
        simulator.send(full, "messages")


@pytest.mark.parametrize(("num_added", "is_found"), [(19, True), (20, False)])
def test_an_entry_is_found_at_most_20_blocks_back(num_added: int, is_found: bool) -> None:
    """providers.md: 20-block lookback. "checks at most 20 positions per breakpoint, counting the breakpoint itself as
    the first one"."""
    simulator = Simulator(CLAUDE)
    start = [block(HEAD, **MARK)]
    simulator.send(messages_body(start), "messages")
    added = [block(str(number)) for number in range(num_added)]
    added[-1].update(MARK)
    usage = simulator.send(messages_body([block(HEAD), *added]), "messages")
    assert (read(usage) == 2003) is is_found


def test_a_mark_between_brings_a_distant_entry_within_reach() -> None:
    """The lookback is of each breakpoint."""
    simulator = Simulator(CLAUDE)
    simulator.send(messages_body([block(HEAD, **MARK)]), "messages")
    added = [block(str(number), **(MARK if number in (15, 29) else {})) for number in range(30)]
    assert read(simulator.send(messages_body([block(HEAD), *added]), "messages")) == 2003


@pytest.mark.parametrize(("wait_seconds", "is_found"), [(300, True), (301, False)])
def test_entries_live_five_minutes_from_the_request(wait_seconds: float, is_found: bool) -> None:
    """providers.md: 5m / 1h from request start."""
    simulator = Simulator(CLAUDE)
    simulator.send(claude([block("one")]), "messages", at_seconds=0)
    usage = simulator.send(claude([block("two")]), "messages", at_seconds=wait_seconds)
    assert both(usage) == ((2003, 0) if is_found else (0, 2003))


def test_reads_make_entries_young_again() -> None:
    """providers.md: reads refresh. "The cache is refreshed for no additional cost each time the cached content is
    used"."""
    simulator = Simulator(CLAUDE)
    usages = [simulator.send(claude([block("hi")]), "messages", at_seconds=at) for at in (0, 250, 500, 750)]
    assert [read(usage) for usage in usages] == [0, 2003, 2003, 2003]


def test_an_hour_is_paid_as_such_and_lasts() -> None:
    """providers.md: 5m / 1h; 1.25, 2.0 for 1h."""
    simulator = Simulator(CLAUDE)
    body = messages_body([block(words(1000, "turn"), **MARK)], system=[block(HEAD, **LONG_MARK)])
    first = simulator.send(body, "messages", at_seconds=0)
    assert (written(first), first.num_long_cache_write_tokens) == (3006, 2003)
    later = simulator.send(body, "messages", at_seconds=3000)
    assert both(later) == (2003, 1003)
    assert later.num_long_cache_write_tokens == 0


def test_the_longer_lived_must_come_first() -> None:
    """providers.md: 1h entries before 5m."""
    body = messages_body([block("hi", **LONG_MARK)], system=[block(HEAD, **MARK)])
    with pytest.raises(InvalidRequest, match="longer ttl must not come after"):
        Simulator(CLAUDE).send(body, "messages")


def test_requests_side_by_side_both_miss() -> None:
    """providers.md: "An entry becomes readable once the first response starts streaming"."""
    simulator = Simulator(CLAUDE, first_token_seconds=2.0)
    usages = [simulator.send(claude([block("hi")]), "messages", at_seconds=at) for at in (0.0, 0.0, 1.9, 2.1)]
    assert [both(usage) for usage in usages] == [(0, 2003), (0, 2003), (0, 2003), (2003, 0)]


TOOLS = [{"name": name, "description": words(1500, name), "input_schema": {}} for name in ("read", "write")]


@pytest.mark.parametrize(
    ("change", "num_kept_marks"),
    [
        ({}, 3),
        ({"tools": [TOOLS[1], {**TOOLS[0], **MARK}]}, 0),
        ({"model": "another"}, 0),
        ({"system": [block(words(1500, "other"), **MARK)]}, 1),
        ({"tool_choice": {"type": "any"}}, 2),
        ({"tool_choice": {"type": "auto"}}, 3),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, 2),
        ({"output_config": {"effort": "high"}}, 2),
        ({"speed": "fast"}, 1),
        ({"max_tokens": 9}, 3),
    ],
)
def test_a_change_costs_what_comes_after_it_in_the_hierarchy(change: dict[str, Any], num_kept_marks: int) -> None:
    """providers.md: "Tools or model change: everything is lost; system: system and messages; `tool_choice`, images:
    messages; thinking or effort: messages". The speed: system and messages."""
    simulator = Simulator(CLAUDE)
    body = messages_body(
        [block(words(1500, "turn"), **MARK)],
        system=[block(words(1500, "head"), **MARK)],
        tools=[TOOLS[0], {**TOOLS[1], **MARK}],
    )
    first = simulator.send(body, "messages")
    ends = [0, written(first) - 3006, written(first) - 1503, written(first)]
    assert read(simulator.send({**body, **change}, "messages")) == ends[num_kept_marks]


def test_the_first_picture_costs_the_messages() -> None:
    """providers.md: images: messages. "Adding/removing images anywhere in the prompt affects message blocks"."""
    simulator = Simulator(CLAUDE)
    turn, answer = [block(words(1500, "turn"), **MARK)], [block("ok")]
    image = {"type": "image", "source": {"type": "base64", "data": "A"}}
    simulator.send(claude(turn), "messages")
    assert read(simulator.send(claude(turn, answer, [block("look")]), "messages")) == 3506
    assert read(simulator.send(claude(turn, answer, [image]), "messages")) == 2003


def test_nobody_reads_what_another_wrote() -> None:
    """Caches are never shared between organisations, nor between models."""
    simulator = Simulator(CLAUDE)
    simulator.send(claude([block("hi")]), "messages", owner="a", model="m")
    assert read(simulator.send(claude([block("hi")]), "messages", owner="b", model="m")) == 0
    assert read(simulator.send(claude([block("hi")]), "messages", owner="a", model="n")) == 0
    assert read(simulator.send(claude([block("hi")]), "messages", owner="a", model="m")) == 2003


# OpenAI from GPT-5.6 on

EXPLICIT = {"prompt_cache_breakpoint": {"mode": "explicit"}}


def gpt(*turns: Body | list[Body], **more: Any) -> Body:
    said = [turn if isinstance(turn, list) else [turn] for turn in turns]
    roles = [("user", "assistant")[index % 2] for index in range(len(said))]
    return {"input": [{"role": role, "content": each} for role, each in zip(roles, said, strict=True)], **more}


def text(number: int, seed: str, **more: Any) -> Body:
    return {"type": "input_text", "text": words(number, seed), **more}


def test_the_newest_message_is_marked_by_openai() -> None:
    """openai SDK, prompt_cache_options.mode: "OpenAI creates one implicit breakpoint"; langchain4j: "at the end of the
    newest eligible message". 1.25 of the price: writes are reported."""
    simulator = Simulator(GPT)
    one, two, three = text(1500, "one"), text(100, "two"), text(100, "three")
    first = simulator.send(gpt(one), "responses")
    second = simulator.send(gpt(one, two, three), "responses")
    assert both(first) == (0, 1503)
    assert both(second) == (1503, num_tokens("<assistant>") + 100 + 103)


def test_what_the_model_says_is_no_place_for_openais_mark() -> None:
    """langchain4j: "assistant output blocks are not among the block types OpenAI accepts a breakpoint on"."""
    usage = Simulator(GPT).send(gpt(text(1500, "one"), text(500, "begun")), "responses")
    assert both(usage) == (0, 1503)


def test_short_prompts_are_not_cached_by_openai() -> None:
    """providers.md: OpenAI >= 5.6, 1,024."""
    simulator = Simulator(GPT)
    body = gpt(text(1020, "one"))
    assert [both(simulator.send(body, "responses")) for _ in range(2)] == [(0, 0), (0, 0)]


def test_there_is_no_falling_back_to_a_prefix_without_breakpoint() -> None:
    """providers.md: "exact match at a breakpoint, no fallback to a shorter one"."""
    simulator = Simulator(GPT)
    simulator.send(gpt([text(1500, "one"), text(100, "two")]), "responses")
    assert read(simulator.send(gpt([text(1500, "one"), text(100, "other")]), "responses")) == 0


def test_a_mark_makes_the_shared_beginning_readable() -> None:
    """openai SDK: "You can add explicit breakpoints to content blocks with `prompt_cache_breakpoint`"."""
    simulator = Simulator(GPT)
    simulator.send(gpt([text(1500, "one", **EXPLICIT), text(100, "two")]), "responses")
    usage = simulator.send(gpt([text(1500, "one", **EXPLICIT), text(100, "other")]), "responses")
    assert both(usage) == (1503, 100)


def test_in_explicit_mode_only_marks_are_written() -> None:
    """openai SDK: "With `explicit`, OpenAI does not create an implicit breakpoint ... If there are no explicit
    breakpoints, the request does not use prompt caching"."""
    simulator = Simulator(GPT)
    explicit = {"prompt_cache_options": {"mode": "explicit"}}
    bare, marked = gpt(text(1500, "one"), **explicit), gpt([text(1500, "one", **EXPLICIT), text(9, "x")], **explicit)
    assert [both(simulator.send(body, "responses")) for body in (bare, bare, marked, marked)] == [
        (0, 0),
        (0, 0),
        (0, 1503),
        (1503, 0),
    ]


@pytest.mark.parametrize(("mode", "num_written"), [("implicit", 3), ("explicit", 4)])
def test_of_many_marks_the_latest_are_written(mode: str, num_written: int) -> None:
    """openai SDK: "With `implicit`, OpenAI creates one implicit breakpoint and writes up to the latest three explicit
    breakpoints in the request. With `explicit` ... up to the latest four"."""
    options = {"prompt_cache_options": {"mode": mode}}
    marked = [text(1200, f"part {number}", **EXPLICIT) for number in range(6)]
    found: list[bool] = []
    for number in range(1, 7):
        simulator = Simulator(GPT)
        simulator.send(gpt([*marked, text(9, "end")], **options), "responses")
        found.append(read(simulator.send(gpt([*marked[:number], text(9, "other")], **options), "responses")) > 0)
    assert found == [False] * (6 - num_written) + [True] * num_written


@pytest.mark.parametrize(("num_between", "is_found"), [(79, True), (80, False)])
def test_the_latest_80_breakpoints_are_looked_at(num_between: int, is_found: bool) -> None:
    """openai SDK: "For cache matching, OpenAI considers up to the latest 80 breakpoints in the conversation, without a
    content-block lookback limit"."""
    simulator = Simulator(GPT)
    head = text(1500, "one", **EXPLICIT)
    explicit = {"prompt_cache_options": {"mode": "explicit"}}
    simulator.send(gpt([head], **explicit), "responses")
    parts = [text(5, f"part {number}", **EXPLICIT) for number in range(num_between)]
    assert (read(simulator.send(gpt([head, *parts], **explicit), "responses")) > 0) is is_found


@pytest.mark.parametrize(
    ("ttl", "seconds", "is_found"), [("30m", 1800, True), ("30m", 1801, False), ("12h", 43_000, True)]
)
def test_openais_entries_live_half_an_hour_or_twelve(ttl: str, seconds: float, is_found: bool) -> None:
    """providers.md: >=30m; 12h Responses; 1.25 (2.5 for 12h)."""
    simulator = Simulator(GPT)
    body = gpt(text(1500, "one"), prompt_cache_options={"ttl": ttl})
    first = simulator.send(body, "responses", at_seconds=0)
    assert first.num_long_cache_write_tokens == (1503 if ttl == "12h" else 0)
    assert (read(simulator.send(body, "responses", at_seconds=seconds)) > 0) is is_found


# OpenAI up to GPT-5.5


def test_older_models_read_in_steps_of_128() -> None:
    """providers.md: OpenAI <= 5.5, 1,024, steps of 128; writes are free."""
    simulator = Simulator(OLD_GPT)
    simulator.send(chat_body(words(1500, "one")), "chat")
    usage = simulator.send(chat_body(words(1500, "one"), "ok", "more"), "chat")
    assert (read(usage) % 128, written(usage)) == (0, 0)
    assert 1408 <= read(usage) <= 1510


def test_any_common_beginning_is_read_from_1024_tokens_on() -> None:
    """providers.md: 1,024. "Cache hits are only possible for exact prefix matches"."""
    simulator = Simulator(OLD_GPT)
    for number, expected in ((1000, 0), (1100, 1024), (1300, 1280)):
        simulator.send(chat_body(words(number, "a") + words(2000, "b")), "chat", owner=str(number))
        usage = simulator.send(chat_body(words(number, "a") + words(2000, "c")), "chat", owner=str(number))
        assert read(usage) == expected


def test_another_cache_key_is_another_machine() -> None:
    """OpenAI's guide: requests are routed by the hash of the prefix and the prompt_cache_key."""
    simulator = Simulator(OLD_GPT)
    bodies = [chat_body(words(1500, "one"), prompt_cache_key=key) for key in ("a", "b", "a")]
    assert [read(simulator.send(body, "chat")) > 0 for body in bodies] == [False, False, True]


@pytest.mark.parametrize(("retention", "is_found"), [({}, False), ({"prompt_cache_retention": "24h"}, True)])
def test_older_models_forget_after_five_minutes_unless_asked_not_to(retention: dict[str, str], is_found: bool) -> None:
    """providers.md: 5-10m, <=24h."""
    simulator = Simulator(OLD_GPT)
    body = chat_body(words(1500, "one"), **retention)
    simulator.send(body, "chat", at_seconds=0)
    assert (read(simulator.send(body, "chat", at_seconds=301)) > 0) is is_found


# DeepSeek


def test_deepseek_reads_whole_requests_only() -> None:
    """api-docs.deepseek.com: "A subsequent request can only hit the cache if it fully matches a cache prefix unit";
    A+B, then A+C misses, then A+D hits A, the common prefix that the second has shown."""
    simulator = Simulator(DEEPSEEK)
    shared = words(500, "shared")
    usages = [simulator.send(chat_body(shared + tail), "chat") for tail in (" one", " two", " three")]
    assert [read(usage) > 0 for usage in usages] == [False, False, True]
    assert read(usages[2]) >= 500


def test_deepseek_reads_the_reply_too() -> None:
    """api-docs.deepseek.com: "two cache prefix units at the end position of the user input and the end position of the
    model output"."""
    simulator = Simulator(DEEPSEEK)
    simulator.send(chat_body("question"), "chat")
    usage = simulator.send(chat_body("question", words(300, "answer"), "next"), "chat")
    assert usage.num_fresh_tokens is not None
    assert usage.num_fresh_tokens < 10


def test_a_reply_that_was_changed_is_read_as_far_as_it_is_the_same() -> None:
    """A local server holds what it computed: a prefix is read, and not the rest of a message that differs."""
    simulator = Simulator(provider_named("llama.cpp").rule_for("x"))
    simulator.send(chat_body("question", words(100, "reply") + words(100, "a"), "next"), "chat")
    usage = simulator.send(chat_body("question", words(100, "reply") + words(100, "b"), "next"), "chat")
    assert usage.num_fresh_tokens is not None
    assert 100 <= usage.num_fresh_tokens < 110


def test_a_conversation_that_goes_on_is_kept_once() -> None:
    simulator = Simulator(OLD_GPT)
    turns = [words(1100, f"turn {number}") for number in range(20)]
    for number in range(1, 20):
        simulator.send(chat_body(*turns[:number]), "chat")
    assert repr(simulator) == "Simulator(prefix, 0 entries, 2 prompts)"


# Others


@pytest.mark.parametrize(
    ("name", "model", "step", "least"),
    [
        ("mistral", "devstral", 64, 64),
        ("moonshot", "kimi-k2", 256, 256),
        ("cerebras", "x", 128, 128),
        ("vllm", "x", 16, 16),
    ],
)
def test_others_read_in_their_own_steps(name: str, model: str, step: int, least: int) -> None:
    """providers.md: Mistral 64, Moonshot 256, Cerebras 128; vLLM: block."""
    simulator = Simulator(provider_named(name).rule_for(model))
    told = {"prompt_cache_key": "k"}
    simulator.send(chat_body(words(700, "a") + " one", **told), "chat")
    usage = simulator.send(chat_body(words(700, "a") + " two", **told), "chat")
    assert read(usage) % step == 0
    assert read(usage) > 700 - step
    simulator.send(chat_body(words(least // 8, "b"), **told), "chat")
    assert read(simulator.send(chat_body(words(least // 8, "b") + " more", **told), "chat")) < least


def test_mistral_wants_a_key() -> None:
    """providers.md: Mistral, automatic? with a key."""
    simulator = Simulator(provider_named("mistral").rule_for("x"))
    body = chat_body(words(500, "a"))
    assert [read(simulator.send(body, "chat")) for _ in range(2)] == [0, 0]


def test_grok_keeps_conversations_apart_by_header() -> None:
    """providers.md, xAI: `x-grok-conv-id` (Chat)."""
    simulator = Simulator(provider_named("xai").rule_for("grok-5", "chat"))
    sent = [{"X-Grok-Conv-Id": name} for name in ("a", "b", "a")]
    usages = [simulator.send(chat_body(words(500, "a")), "chat", headers=headers) for headers in sent]
    assert [read(usage) > 0 for usage in usages] == [False, False, True]


def test_qwen_has_two_caches_and_a_request_uses_one() -> None:
    """alibabacloud.com: "Explicit cache and implicit cache are mutually exclusive (one per request)"; 125% to
    create."""
    simulator = Simulator(provider_named("qwen").rule_for("qwen3-coder"))
    marked = {"messages": [{"role": "user", "content": [block(words(1500, "a"), **MARK)]}]}
    bare = {"messages": [{"role": "user", "content": [block(words(1500, "a"))]}]}
    usages = [both(simulator.send(body, "chat")) for body in (marked, bare, marked, bare)]
    assert usages == [(0, 1503), (0, 0), (1503, 0), (1503, 0)]


def test_gemini_caches_from_2_5_on_and_from_its_minimum() -> None:
    """ai.google.dev: "Implicit caching is enabled by default for all Gemini 2.5 and newer models"; 2,048 and 4,096."""
    for model, number, is_cached in (
        ("gemini-2.0-flash", 5000, False),
        ("gemini-2.5-pro", 2100, True),
        ("gemini-3.6-flash", 2100, False),
    ):
        simulator = Simulator(provider_named("gemini").rule_for(model))
        usages = [simulator.send(chat_body(words(number, "a")), "chat") for _ in range(2)]
        assert (read(usages[1]) > 0) is is_cached


@pytest.mark.parametrize("rule", [pytest.param(rule, id=each.name) for each in providers() for rule in each.rules[-1:]])
def test_every_row_can_be_simulated_and_no_count_is_impossible(rule: CacheRule) -> None:
    simulator = Simulator(rule)
    for turns in (["a"], ["a", "b", words(5000, "c")], ["a", "b", words(5000, "c"), "d", "e"], ["x"]):
        for dialect in ("chat", "messages"):
            usage = simulator.send(chat_body(*turns, prompt_cache_key="k"), dialect)
            assert usage.num_fresh_tokens is not None
            assert usage.num_fresh_tokens >= 0
            assert min(both(usage)) >= 0


# The best that is possible


def test_the_best_writes_every_token_once() -> None:
    bodies = [chat_body(*turns) for turns in (["a"], ["a", "b", "c"], ["a", "b", "x"], ["a", "b", "c", "d", "e"])]
    usages = best_possible(bodies, "chat", replace(OLD_GPT, keeps_output=False))
    assert [usage.num_fresh_tokens for usage in usages] == [0] * 4
    assert read(usages[0]) == 0
    assert read(usages[2]) == (usages[2].num_input_tokens or 0) - 1
    assert read(usages[3]) == usages[1].num_input_tokens


def test_no_simulator_does_better_than_the_best() -> None:
    bodies = [messages_body([block(HEAD, **MARK), *([block(str(n)) for n in range(turn)])]) for turn in range(1, 9)]
    ideal = best_possible(bodies, "messages", CLAUDE)
    simulator = Simulator(CLAUDE)
    for body, best in zip(bodies, ideal, strict=True):
        assert read(simulator.send(body, "messages")) <= read(best)


def test_the_best_keeps_owners_apart() -> None:
    ideal = Ideal(OLD_GPT)
    ideal.send(chat_body("hello"), "chat", owner="a")
    assert read(ideal.send(chat_body("hello"), "chat", owner="b")) == 0


@pytest.mark.parametrize("rule", [CLAUDE, GPT, OLD_GPT, DEEPSEEK], ids=["claude", "gpt", "old gpt", "deepseek"])
def test_60_requests_of_100_000_tokens_take_a_few_seconds(rule: CacheRule) -> None:
    files = [block("".join(f"{turn}: value_{line} = {line * turn}\n" for line in range(200))) for turn in range(90)]
    started = time.perf_counter()
    simulator = Simulator(rule)
    for number in range(60):
        body = messages_body([*files[: 30 + number], block("now", **MARK)])
        usage = simulator.send(body, "messages")
    assert (usage.num_input_tokens or 0) > 100_000
    assert time.perf_counter() - started < 6
