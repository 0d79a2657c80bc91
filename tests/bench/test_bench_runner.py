"""How the suite is run (`kvstet.bench.runner`), on servers that only count."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.bench.bench_fakes import FakeServer, everything, serving, the_last

from kvstet.bench import playing
from kvstet.bench.measuring import Effort
from kvstet.bench.results import Scenario
from kvstet.bench.runner import BROKEN_OFF, News, Runner
from kvstet.bench.suite import FEW_CELLS, chosen
from kvstet.errors import ServerGone
from kvstet.replay.results import Run

EFFORT = Effort(num_pairs=2, max_growth_tokens=3000, num_reply_tokens=4, prompt_lengths=(50,))


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(playing, "SAVING_SECONDS", 0.0)


@pytest.fixture
def pair() -> Iterator[tuple[FakeServer, FakeServer]]:
    ours, theirs = FakeServer("kvstet", everything, "kvstet"), FakeServer("peer", the_last)
    with serving(ours, theirs):
        yield ours, theirs


def runner(servers: Any, *names: str, effort: Effort = EFFORT, **options: Any) -> Runner:
    return Runner(servers, chosen(names), effort, context_length=8192, seed=1, **options)


def run(servers: Any, *names: str, effort: Effort = EFFORT) -> list[Scenario]:
    made = runner(servers, *names, effort=effort)
    asyncio.run(made.run())
    return made.scenarios


def runs_of(scenario: Scenario, server: str) -> list[Run]:
    return [each for each in scenario.runs if each.server == server]


def test_a_cache_of_all_prefixes_computes_the_bound_and_a_cache_of_the_last_prompt_more(pair: Any):
    (found,) = run(pair, "side-requests")
    for ours, theirs in zip(runs_of(found, "kvstet"), runs_of(found, "peer"), strict=True):
        assert ours.num_computed_tokens == ours.num_bound_tokens
        assert (theirs.num_computed_tokens or 0) > (theirs.num_bound_tokens or 0)
        assert ours.num_bound_tokens == theirs.num_bound_tokens
        assert ours.num_prompt_tokens == theirs.num_prompt_tokens


def test_all_servers_are_sent_the_very_same_conversations(pair: Any):
    run(pair, "append", "arguments")
    sent = [[body["messages"] for body in server.bodies if "messages" in body] for server in pair]
    assert sent[0] and sorted(map(str, sent[0])) == sorted(map(str, sent[1]))
    assert all(body["max_tokens"] == 1 and body["temperature"] == 0 for body in pair[0].bodies if "messages" in body)


def test_each_repetition_has_text_of_its_own(pair: Any):
    (found,) = run(pair, "append")
    first, second = runs_of(found, "peer")
    assert (first.repetition, second.repetition) == (0, 1)
    heads = {body["messages"][0]["content"] for body in pair[0].bodies if "messages" in body}
    assert len(heads) == 2
    assert second.asked[0].num_computed_tokens == pytest.approx(second.asked[0].num_prompt_tokens, abs=60)


def test_who_goes_first_alternates(pair: Any):
    found = run(pair, "append", "clock")
    orders = [[each.server for each in scenario.runs] for scenario in found]
    assert orders == [["kvstet", "peer", "peer", "kvstet"], ["peer", "kvstet", "kvstet", "peer"]]


def test_only_one_server_works_at_a_time(pair: Any):
    run(pair, "append")
    for server, other in (pair, pair[::-1]):
        measured = [rest for rest, body in zip(server.seen_at_rest, server.bodies, strict=True) if "messages" in body]
        assert measured and all(rest == [other.name] for rest in measured)
    assert [server.resting for server in pair] == [0, 0]


def test_what_a_request_cost_is_noted_with_its_verdict(pair: Any):
    (found,) = run(pair, "append")
    asked = runs_of(found, "kvstet")[0].asked
    assert [each.label for each in asked] == ["task", "result 1", "result 2"]
    assert all(each.verdict == "So." and each.error is None for each in asked)
    assert all(0 < (each.first_token_seconds or 0) <= (each.seconds or 0) for each in asked)
    assert [each.at_seconds for each in asked] == sorted(each.at_seconds for each in asked)


def test_what_a_server_does_not_tell_stays_unknown(pair: Any):
    pair[1].account = "nothing"
    (found,) = run(pair, "append")
    theirs = runs_of(found, "peer")[0]
    assert theirs.num_computed_tokens is None and theirs.num_bound_tokens is not None
    assert theirs.asked[0].num_prompt_tokens == runs_of(found, "kvstet")[0].asked[0].num_prompt_tokens


def test_a_server_without_the_template_is_sent_the_prompt(pair: Any):
    pair[1].endpoint = "text"
    (found,) = run(pair, "append")
    assert all("messages" not in body for body in pair[1].bodies)
    assert runs_of(found, "peer")[0].num_prompt_tokens == runs_of(found, "kvstet")[0].num_prompt_tokens


def test_agents_that_start_at_once_share_their_history_in_the_bound(pair: Any):
    (found,) = run(pair, "fan-out")
    asked = runs_of(found, "kvstet")[0].asked
    assert len(asked) == 8
    assert sum(each.num_bound_tokens or 0 for each in asked[1:]) < (asked[0].num_prompt_tokens or 0) * 4


def test_a_refused_request_ends_its_run_and_the_rest_goes_on(pair: Any):
    pair[1].refuses = "10:05"
    clock, compaction = sorted(run(pair, "clock", "compaction"), key=lambda each: each.name)
    assert [each.failure for each in runs_of(clock, "kvstet")] == [None, None]
    for failed in runs_of(clock, "peer"):
        assert failed.failure is not None and "10:05: 400" in failed.failure and "too long" in failed.failure
        assert len(failed.asked) == 2
    assert [each.failure for each in compaction.runs] == [None] * 4


def test_a_server_that_dies_is_told_and_the_rest_goes_on(pair: Any):
    alive = pair[1].url

    async def come_back(limits: Any) -> None:
        pair[1].url = alive

    def die() -> float:
        pair[1].url = "http://127.0.0.1:9"
        raise ServerGone("It is gone.")

    async def restart() -> float:
        return die()

    pair[1].fit, pair[1].restart = come_back, restart
    found = {each.name: each for each in run(pair, "restart", "interleaved", effort=replace(EFFORT, num_pairs=1))}
    assert runs_of(found["restart"], "peer")[0].failure == "It is gone."
    assert runs_of(found["interleaved"], "peer")[0].failure is None


def test_a_server_out_of_reach_fails_each_run_and_no_more(pair: Any):
    gone = FakeServer("gone", url="http://127.0.0.1:9")
    (found,) = run((*pair, gone), "append")
    assert all(each.failure and not each.asked for each in runs_of(found, "gone"))
    assert [each.failure for each in runs_of(found, "peer")] == [None, None]


def test_after_a_kill_only_what_was_kept_is_not_computed_again(pair: Any):
    (found,) = run(pair, "restart")
    last = runs_of(found, "peer")[0]
    assert last.values["start_seconds"] == 0.5
    assert last.asked[1].num_computed_tokens == last.asked[1].num_prompt_tokens
    assert (last.asked[1].num_bound_tokens or 0) < (last.asked[1].num_prompt_tokens or 0)


def test_a_scenario_with_little_room_says_so_to_all_servers(pair: Any):
    run(pair, "append", "interleaved", effort=replace(EFFORT, num_pairs=1))
    assert [server.limits for server in pair] == [[None, FEW_CELLS]] * 2


def test_a_new_server_with_little_room_is_warmed_up_with_what_has_room(pair: Any):
    run(pair, "interleaved", effort=replace(EFFORT, num_pairs=1))
    for server in pair:
        assert len(server.bodies[0]["prompt"]) < FEW_CELLS.context_length


def test_decoding_is_timed_for_all_streams_together(pair: Any):
    pair[0].tokens_seconds = 0.01
    pair[1].tokens_seconds = 0.04
    (found,) = run(pair, "decode", effort=replace(EFFORT, num_pairs=1, num_reply_tokens=12))
    ours, theirs = (runs_of(found, name)[0].values for name in ("kvstet", "peer"))
    names = ["1_stream_tokens_per_second", "4_streams_tokens_per_second", "8_streams_tokens_per_second"]
    assert list(ours) == names == list(theirs)
    assert 10 < theirs[names[0]] <= 27 < ours[names[0]] <= 110
    assert theirs[names[1]] > 2 * theirs[names[0]]


def test_prompts_are_timed_without_the_cache(pair: Any):
    (found,) = run(pair, "prefill")
    assert all(list(each.values) == ["50_token_prompt_tokens_per_second"] for each in found.runs)
    assert all(body["cache_prompt"] is False for body in pair[0].bodies)


def test_memory_is_told_at_idle_by_token_and_at_the_highest(pair: Any):
    found = {each.name: each for each in run(pair, "memory", "append", effort=replace(EFFORT, num_pairs=1))}
    weighed = runs_of(found["memory"], "kvstet")[0]
    values = weighed.values
    assert set(values) == {"idle_bytes", "cached_token_bytes", "end_bytes", "peak_bytes"}
    assert values["idle_bytes"] < values["end_bytes"] <= values["peak_bytes"]
    num_cached_tokens = sum(each.num_reused_tokens or 0 for each in weighed.asked[-3:])
    num_bytes = 2 * (weighed.num_computed_tokens or 0)  # as the fake has it
    assert values["cached_token_bytes"] == pytest.approx(num_bytes / num_cached_tokens)


def test_what_is_cancelled_keeps_what_was_found(pair: Any):
    async def interrupted() -> Runner:
        def stop(news: News) -> None:
            if news.num_done == 3:
                task.cancel()

        made = runner(pair, "append", "clock", watch=stop)
        task = asyncio.create_task(made.run())
        with pytest.raises(asyncio.CancelledError):
            await task
        return made

    made = asyncio.run(interrupted())
    runs = [each for scenario in made.scenarios for each in scenario.runs]
    assert [each.failure for each in runs] == [None, None, None, BROKEN_OFF]
    assert [server.resting for server in pair] == [0, 0]


def test_long_scenarios_are_repeated_less_often(pair: Any):
    (found,) = run(pair, "growth", effort=replace(EFFORT, num_pairs=4))
    assert len(runs_of(found, "kvstet")) == 2


def test_news_count_to_the_end(pair: Any):
    told: list[News] = []
    made = runner(pair, "append", watch=told.append)
    asyncio.run(made.run())
    assert [news.num_done for news in told] == [0, 1, 2, 3]
    assert {news.num_runs for news in told} == {4}
