"""A session, replayed against servers that are not kvstet."""

from __future__ import annotations

from typing import Any

import pytest
from tests.replay.replay_harness import (
    AT_ONCE,
    BASH,
    PLAN,
    SYSTEM,
    TASK,
    Peer,
    chat,
    exchange,
    peer_site,
    recorded,
    replayed,
)

from kvstet.errors import InvalidRequest, ServerGone
from kvstet.replay.playing import NUM_TOO_LONG, Player
from kvstet.replay.results import Run
from kvstet.replay.server import client_of, found
from kvstet.replay.session import session_of

RESPONSES = {
    "model": "m",
    "instructions": SYSTEM["content"],
    "input": TASK["content"],
    "tools": [{"type": "function", **BASH["function"]}],
    "max_output_tokens": 99,
}


def test_it_is_asked_for_one_token_and_the_reply_comes_with_the_next_request():
    with peer_site(Peer()) as peer:
        replayed(peer.url, recorded())
    for _, body, _ in peer.asked:
        assert (body["max_tokens"], body["stream"], body["model"]) == (1, True, "peer")
        assert body["stream_options"] == {"include_usage": True}
        assert "kvstet_reply" not in body
    assert peer.asked[1][1]["messages"][2]["content"] == PLAN.text


def test_llama_servers_timings_are_its_costs_and_the_bound_is_from_its_own_tokens():
    with peer_site(Peer()) as peer:
        run = replayed(peer.url, recorded())
        prompts = [peer.tokens(peer.prompt(body)) for _, body, _ in peer.asked]
    sizes = [len(prompt) for prompt in prompts]
    assert [asked.num_prompt_tokens for asked in run.asked] == sizes
    # Each prompt begins with the one before, and the peer caches the last one.
    assert [asked.num_computed_tokens for asked in run.asked] == [sizes[0], sizes[1] - sizes[0], sizes[2] - sizes[1]]
    assert [asked.num_bound_tokens for asked in run.asked] == [sizes[0], sizes[1] - sizes[0], sizes[2] - sizes[1]]
    assert all(asked.num_loaded_tokens is None for asked in run.asked)


def test_the_bound_remembers_all_that_was_sent_and_not_only_the_last():
    other = chat([{"role": "user", "content": "Another conversation."}])
    session = session_of(
        [exchange(1, chat([SYSTEM, TASK])), exchange(2, other), exchange(3, chat([SYSTEM, TASK]))],
    )
    with peer_site(Peer()) as peer:
        run = replayed(peer.url, session)
    assert run.asked[2].num_bound_tokens == 1
    assert (run.asked[2].num_computed_tokens or 0) > 100


def test_the_verdict_is_estimated_from_the_edits():
    with peer_site(Peer()) as peer:
        run = replayed(peer.url, recorded())
    assert str(run.asked[0].verdict).startswith("Estimated: New conversation")
    assert str(run.asked[1].verdict).startswith("Estimated: Appended")


def test_a_prompt_that_the_server_counts_otherwise_has_no_bound():
    class Odd(Peer):
        def prompt(self, body: dict[str, Any]) -> str:
            return super().prompt(body) + ("" if "max_tokens" in body else "more")

    with peer_site(Odd()) as peer:
        (asked, *_) = replayed(peer.url, session_of([exchange(1, {"messages": [TASK]})])).asked
    assert (asked.num_bound_tokens, asked.error) == (None, None)


def test_a_server_that_tells_no_tokens_has_costs_that_nobody_knows():
    with peer_site(Peer(build_info=None, tells_usage=False)) as peer:
        run = replayed(peer.url, recorded())
    for asked in run.asked:
        assert (asked.num_prompt_tokens, asked.num_computed_tokens, asked.num_bound_tokens) == (None, None, None)
        assert asked.first_token_seconds is not None
        assert asked.error is None


def test_what_a_server_does_not_speak_is_translated():
    with peer_site(Peer(build_info=None)) as peer:
        run = replayed(peer.url, session_of([exchange(1, RESPONSES, PLAN, path="/v1/responses")]))
    ((path, body, _),) = peer.asked
    assert run.asked[0].error is None
    assert path == "/v1/chat/completions"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert (body["max_tokens"], body["model"]) == (1, "peer")
    assert "max_completion_tokens" not in body


def test_what_it_speaks_is_sent_as_it_was():
    both = frozenset({"/v1/chat/completions", "/v1/responses"})
    with peer_site(Peer(build_info=None, paths=both)) as peer:
        replayed(peer.url, session_of([exchange(1, RESPONSES, PLAN, path="/v1/responses")]))
    ((path, body, _),) = peer.asked
    assert (path, body["max_output_tokens"], body["input"]) == ("/v1/responses", 1, TASK["content"])


def test_a_key_is_sent_where_either_dialect_wants_it():
    with peer_site(Peer()) as peer, client_of(peer.url, "sesame") as client:
        run = Run(server="it")
        Player(client, found(client, "chosen"), lambda _: None).play(recorded(), AT_ONCE, run)
    _, body, headers = peer.asked[0]
    assert (headers["authorization"], headers["x-api-key"]) == ("Bearer sesame", "sesame")
    assert body["model"] == "chosen"


def test_a_prompt_that_is_too_long_for_llama_server_is_counted():
    error = {
        "code": 400,
        "message": "request (9 tokens) exceeds the available context size (8 tokens), try increasing it",
        "type": "exceed_context_size_error",
    }
    with peer_site(Peer(refusals={1: (400, {"error": error | {"n_prompt_tokens": 9, "n_ctx": 8}})})) as peer:
        run = replayed(peer.url, recorded())
    assert run.values == {NUM_TOO_LONG: 1}
    assert [asked.error is None for asked in run.asked] == [True, False, True]


def test_a_server_that_goes_away_ends_its_run_and_what_was_asked_stays():
    with peer_site(Peer(dies_at=1)) as peer:
        run = replayed(peer.url, recorded())
    assert len(run.asked) == 1
    assert "answers no more" in str(run.failure)


def test_nobody_at_an_address_is_one_sentence():
    with peer_site(Peer()) as peer:
        url = peer.url
    with client_of(url) as client, pytest.raises(ServerGone, match="No server answers at http://127"):
        found(client)


def test_a_server_without_models_wants_one_named():
    with peer_site(Peer(models=())) as peer, client_of(peer.url) as client:
        with pytest.raises(ServerGone, match="--model"):
            found(client)
        assert found(client, "mine").model == "mine"


def test_a_url_that_is_none_is_refused():
    with pytest.raises(InvalidRequest, match="is no URL"):
        client_of("http://[::1")
