"""A session, replayed against kvstet with a real cache and a model that computes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from tests.api.harness import Site
from tests.replay.replay_harness import (
    AT_ONCE,
    BASH,
    DONE,
    PLAN,
    SYSTEM,
    TASK,
    THIRD,
    TOKENIZER,
    chat,
    exchange,
    kvstet_site,
    played_engine,
    recorded,
    replayed,
)

from kvstet.engine.messages import Generate
from kvstet.replay.playing import NUM_NOT_FORCED, NUM_TOO_LONG, Player, forced_reply
from kvstet.replay.results import Run
from kvstet.replay.server import Server, client_of, found
from kvstet.replay.session import Pace, session_of
from kvstet.traces.format import Call, Plan


def exact_bounds(requests: Sequence[Generate]) -> list[int]:
    """From the very tokens: all that was sent or decoded before. The token that ends a turn is not decoded."""
    seen: list[list[int]] = []
    bounds: list[int] = []
    for request in requests:
        tokens = request.tokens.tolist()
        known = max((_num_common(tokens, other) for other in seen), default=0)
        bounds.append(max(1, len(tokens) - known))
        seen.append([*tokens, *request.forced[:-1]])
    return bounds


def _num_common(one: list[int], other: list[int]) -> int:
    length = min(len(one), len(other))
    differs = np.flatnonzero(np.array(one[:length]) != np.array(other[:length]))
    return int(differs[0]) if len(differs) else length


def forced_texts(site: Site) -> list[str]:
    return [b"".join(map(TOKENIZER.piece, request.forced)).decode() for request in site.engine.requests]


def test_each_request_computes_the_least_that_it_could_have():
    with kvstet_site() as site:
        run = replayed(site.url, recorded())
        bounds = exact_bounds(site.engine.requests)
    assert [asked.error for asked in run.asked] == [None] * 3
    assert [asked.num_bound_tokens for asked in run.asked] == bounds
    assert [asked.num_computed_tokens for asked in run.asked] == bounds
    assert [asked.num_prompt_tokens for asked in run.asked] == [len(each.tokens) for each in site.engine.requests]
    assert run.num_computed_tokens == run.num_bound_tokens == sum(bounds) < (run.num_prompt_tokens or 0)


def test_the_recorded_replies_are_said_again():
    with kvstet_site() as site:
        replayed(site.url, recorded())
        first, second, third = forced_texts(site)
    assert "Hm, ls." in first
    assert '{"cmd": "ls -la"}' in first
    assert second.startswith("There is one: a.py.")
    assert third == "Done.<|im_end|>"


def test_times_and_kvstets_own_verdict_are_told():
    with kvstet_site() as site:
        run = replayed(site.url, recorded())
    assert all(asked.first_token_seconds is not None for asked in run.asked)
    assert all((asked.seconds or 0) >= (asked.first_token_seconds or 0) > 0 for asked in run.asked)
    assert str(run.asked[1].verdict).startswith("Appended: computed")
    assert [asked.at_seconds for asked in run.asked] == sorted(asked.at_seconds for asked in run.asked)


def test_it_waits_as_long_as_the_recording_did():
    slept: list[float] = []
    with kvstet_site() as site:
        replayed(site.url, recorded(), Pace(max_seconds=2.0), sleep=slept.append)
    assert slept == [0.5, 2.0]


def test_all_three_dialects_are_sent_as_they_were_recorded():
    tool = {"name": "bash", "description": "Runs.", "input_schema": BASH["function"]["parameters"]}
    messages = {"model": "m", "max_tokens": 5, "system": SYSTEM["content"], "messages": [TASK], "tools": [tool]}
    function = {"type": "function", **BASH["function"]}
    responses = {"model": "m", "instructions": SYSTEM["content"], "input": TASK["content"], "tools": [function]}
    session = session_of(
        [
            exchange(1, chat([SYSTEM, TASK]), PLAN),
            exchange(2, messages, PLAN, path="/v1/messages?beta=true"),
            exchange(3, responses, PLAN, path="/v1/responses"),
        ]
    )
    with kvstet_site() as site:
        run = replayed(site.url, session)
        texts = forced_texts(site)
    assert [asked.error for asked in run.asked] == [None] * 3
    assert len(set(texts)) == 1
    assert [asked.num_computed_tokens for asked in run.asked][1:] == [1, 1]


def test_tokens_of_the_same_model_are_said_as_they_were():
    server = Server("http://x", "kvstet", "tiny")
    (same, other) = session_of(
        [
            exchange(1, chat([TASK]), PLAN, tokens=[65, 66], model="tiny"),
            exchange(2, chat([TASK]), DONE, tokens=[65, 66], model="large"),
        ]
    ).turns
    assert forced_reply(same, server) == {"tokens": [65, 66]}
    assert forced_reply(other, server) == {"reasoning": "", "text": DONE.text, "calls": []}


def test_a_reply_that_the_model_cannot_write_is_told_and_one_token_is_said_instead():
    plan = Plan(text="Look.", calls=[Call(name="bash", args_raw="{")])
    with kvstet_site() as site:
        run = replayed(site.url, session_of([exchange(1, chat([TASK]), plan)]))
        (request,) = site.engine.requests
    assert (run.values, run.asked[0].error) == ({NUM_NOT_FORCED: 1}, None)
    assert (request.forced, request.max_new_tokens) == ((), 1)


def test_a_reply_that_nobody_knows_is_one_token():
    with kvstet_site() as site:
        replayed(site.url, session_of([exchange(1, chat([TASK]), None)]))
        (request,) = site.engine.requests
    assert (request.forced, request.max_new_tokens) == ((), 1)


def test_what_does_not_fit_the_context_is_counted_and_the_rest_is_sent():
    session = session_of(
        [
            exchange(1, chat([SYSTEM, TASK]), PLAN),
            exchange(2, chat([{"role": "user", "content": "x" * 3000}])),
            exchange(3, chat(THIRD), DONE),
        ]
    )
    with kvstet_site(played_engine(context_length=2500)) as site:
        run = replayed(site.url, session)
    assert run.values == {NUM_TOO_LONG: 1}
    assert [asked.error is None for asked in run.asked] == [True, False, True]
    assert "400: This model's maximum context length is 2500" in str(run.asked[1].error)


def test_a_refusal_is_told_and_the_rest_is_sent():
    bad = chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}])
    with kvstet_site() as site:
        run = replayed(site.url, session_of([exchange(1, bad, DONE), exchange(2, chat([TASK]), DONE)]))
    assert str(run.asked[0].error).startswith("400: ")
    assert run.asked[1].error is None


def test_replaying_again_computes_one_token_of_each():
    runs = [Run(server="it"), Run(server="it")]
    with kvstet_site() as site, client_of(site.url) as client:
        player = Player(client, found(client), lambda _: None)
        for run in runs:
            player.play(recorded(), AT_ONCE, run)
    assert [asked.num_computed_tokens for asked in runs[1].asked] == [1, 1, 1]
    assert [asked.num_bound_tokens for asked in runs[1].asked] == [1, 1, 1]


def test_the_bound_counts_what_this_replay_sent_and_not_what_the_server_had():
    """Be it from before, or computed ahead."""
    with kvstet_site() as site:
        fresh = replayed(site.url, recorded())
        again = replayed(site.url, recorded())
    assert [asked.num_computed_tokens for asked in again.asked] == [1, 1, 1]
    assert [asked.num_bound_tokens for asked in again.asked] == [asked.num_bound_tokens for asked in fresh.asked]


def test_fresh_servers_give_the_same_counts():
    runs = []
    for _ in range(2):
        with kvstet_site() as site:
            runs.append(replayed(site.url, recorded()))
    one, two = ([asked.num_computed_tokens for asked in run.asked] for run in runs)
    assert one == two
    assert sum(filter(None, one)) > 0


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_a_server_is_found_under_the_urls_that_clients_want(end: str):
    with kvstet_site() as site, client_of(site.url + end) as client:
        server = found(client)
    assert (server.kind, server.model, server.url) == ("kvstet", "tiny", site.url)
    assert server.dialects == {"chat", "messages", "responses"}
