from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.engine.harness import Harness, words

from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.engine.messages import Failed, Finished, Token
from kvstet.errors import ContextOverflow, DeadlineExceeded, InvalidRequest, OutOfCells, OutOfMemory, QueueFull
from kvstet.types import Blob, MemoryTraits, RequestId

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


@ALL_KINDS
def test_an_appended_turn_computes_only_what_is_new(traits: MemoryTraits):
    h = Harness(traits)
    first = h.ask("a", words(200))
    h.ask("b", first + words(50, 1), cuts=(200, len(first)))
    # The last sampled token of a reply was never decoded.
    assert h.reuse("b").num_computed_tokens == 51
    assert h.reuse("b").num_reused_tokens == len(first) - 1


@ALL_KINDS
def test_an_edit_computes_from_the_message_it_is_in(traits: MemoryTraits):
    h = Harness(traits)
    prompt = words(300)
    h.ask("a", prompt, cuts=(100, 200))
    h.ask("b", prompt[:230] + words(70, 1), cuts=(100, 200))
    assert h.reuse("b").num_computed_tokens == (70 if traits.kind == "attention" else 100)
    assert h.reuse("b").num_known_tokens >= 230


@ALL_KINDS
def test_an_old_branch_survives_an_edit_and_is_found_again(traits: MemoryTraits):
    h = Harness(traits)
    prompt = words(300)
    first = h.ask("a", prompt, cuts=(100, 200))
    h.ask("b", prompt[:200] + words(100, 1), cuts=(100, 200))
    h.ask("c", first + words(20, 2), cuts=(100, 200, 300))
    assert h.reuse("c").num_computed_tokens == 21


@ALL_KINDS
def test_a_fully_cached_prompt_does_not_step_back_a_whole_checkpoint(traits: MemoryTraits):
    h = Harness(traits)
    prompt = words(300)
    h.ask("a", prompt)
    h.ask("b", prompt)
    assert h.reuse("b").num_computed_tokens == 1


@ALL_KINDS
def test_a_rewind_into_a_message_costs_the_way_to_it_only_once(traits: MemoryTraits):
    h = Harness(traits)
    prompt = words(300)
    h.ask("a", prompt)
    h.ask("rewound", prompt[:150])
    h.ask("again", prompt[:150])
    assert h.reuse("again").num_computed_tokens == 1


@ALL_KINDS
def test_requests_at_once_share_the_prefix_that_one_computes(traits: MemoryTraits):
    h = Harness(traits, parallel=8, num_sequences=16)
    shared = words(600)
    for i in range(8):
        h.submit(f"r{i}", shared + words(10 + i, i + 1), cuts=(300, 600))
    h.run()
    assert h.model.num_decoded_tokens < 600 + sum(10 + i for i in range(8)) + 8 * 4 + 8


@ALL_KINDS
def test_saved_state_comes_back_after_the_live_cells_were_given_away(traits: MemoryTraits):
    h = Harness(traits, num_cells=400, max_length=400)
    prompt = words(200)
    first = h.ask("a", prompt, cuts=(100,))
    h.idle()
    h.ask("other", words(350, 9), cuts=(100, 200, 300))
    h.ask("b", first + words(10, 1), cuts=(100, 200, 204))
    reuse = h.reuse("b")
    assert reuse.num_loaded_tokens >= 200
    assert reuse.num_computed_tokens == 11


def test_a_parked_branch_leaves_the_live_cells_once_others_have_worked_beside_it():
    h = Harness()
    h.ask("a", words(200))
    h.ask("other", words(300, 9), new=40)
    assert h.model.num_used_cells <= 300 + 40
    assert h.cache.tier.used_bytes > 0


def test_a_side_request_never_costs_the_main_session_anything():
    h = Harness(num_cells=1000, max_length=900)
    history = words(700)
    computed = 0
    for turn in range(6):
        history = h.ask(f"main{turn}", history)
        h.ask(f"side{turn}", words(120, 100 + turn))
        history = history + words(20, 200 + turn)
        if turn:
            computed += h.reuse(f"main{turn}").num_computed_tokens
    assert computed == 5 * 21


@ALL_KINDS
def test_when_live_cells_run_out_the_youngest_request_is_set_back_and_loses_nothing(traits: MemoryTraits):
    h = Harness(traits, num_cells=500, max_length=500)
    h.submit("a", words(200, 1), new=150)
    h.submit("b", words(200, 2), new=150)
    h.run()
    assert len(h.reply("a")) == len(h.reply("b")) == 150
    assert h.engine.stats().num_preemptions > 0


def test_cancelling_frees_the_request_and_keeps_what_it_computed():
    h = Harness()
    h.submit("a", words(300))
    h.step()
    h.engine.cancel(RequestId("a"))
    h.run()
    assert isinstance(h.last("a"), Finished)
    h.ask("b", words(300))
    assert h.reuse("b").num_reused_tokens == 64


@ALL_KINDS
def test_who_waited_for_a_cancelled_request_goes_on_alone(traits: MemoryTraits):
    h = Harness(traits)
    shared = words(300)
    h.submit("a", [*shared, 1])
    h.submit("b", [*shared, 2])
    h.step()
    h.engine.cancel(RequestId("a"))
    h.run()
    assert len(h.reply("b")) == 4


def test_a_prompt_over_the_context_says_the_numbers():
    h = Harness(max_length=100)
    h.submit("a", words(100))
    h.run()
    failed = h.last("a")
    assert isinstance(failed, Failed) and isinstance(failed.error, ContextOverflow)
    assert "100 tokens" in str(failed.error)


def test_an_empty_prompt_and_a_full_queue_are_refused():
    h = Harness(parallel=1)
    h.submit("empty", [])
    for i in range(9):
        h.submit(f"r{i}", words(10, i))
    h.run()
    assert isinstance(h.last("empty"), Failed) and isinstance(h.last("empty").error, InvalidRequest)
    assert isinstance(h.last("r8"), Failed) and isinstance(h.last("r8").error, QueueFull)
    assert isinstance(h.last("r7"), Finished)


def test_a_deadline_ends_a_request_that_waits_or_runs():
    h = Harness(parallel=1)
    h.submit("a", words(10), new=100_000, deadline_seconds=1.0)
    h.submit("b", words(10, 1), deadline_seconds=0.5)
    h.run()
    for name in "ab":
        assert isinstance(h.last(name), Failed) and isinstance(h.last(name).error, DeadlineExceeded)


def test_a_prompt_alone_can_be_computed_without_a_reply():
    h = Harness()
    h.ask("a", words(100), new=0)
    h.ask("b", words(100) + words(10, 1))
    assert h.reply("a") == []
    assert h.reuse("b").num_reused_tokens == 100


def test_the_reply_ends_where_the_model_ends_its_turn():
    h = Harness(end_token=0)
    h.model.vocab_size = 4
    h.ask("a", [1, 2, 3], new=None)
    assert h.reply("a")[-1] == 0
    assert 0 not in h.reply("a")[:-1]


def test_logprobs_are_the_models_own():
    h = Harness()
    h.ask("a", words(5), new=1, num_logprobs=3)
    token = next(event for event in h.events["a"] if isinstance(event, Token))
    logits = h.model.expected_logits(words(5)).astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    assert token.logprobs is not None
    assert token.logprobs.logprob == pytest.approx(expected.max())
    assert [i for i, _ in token.logprobs.top] == np.argsort(expected)[::-1][:3].tolist()


@ALL_KINDS
def test_a_request_that_wants_no_cache_is_computed_anew_and_leaves_nothing(traits: MemoryTraits):
    h = Harness(traits)
    first = h.ask("a", words(200), cuts=(100,))
    used = h.model.num_used_cells
    h.idle()
    num_nodes, ram_bytes = h.cache.tree.num_nodes, h.cache.tier.used_bytes
    h.ask("b", first + words(100, 2), cuts=(100, 200, 204), cache_prompt=False)
    assert h.reuse("b").num_computed_tokens == len(first) + 100
    assert (h.cache.tree.num_nodes, h.cache.tier.used_bytes) == (num_nodes, ram_bytes)
    assert h.model.num_used_cells <= used
    h.ask("c", first + words(10, 1), cuts=(100, 200, 204))
    assert h.reuse("c").num_computed_tokens == 11


@ALL_KINDS
def test_state_that_there_is_no_memory_to_save_is_computed_again(
    traits: MemoryTraits, caplog: pytest.LogCaptureFixture
):
    h = Harness(traits, num_cells=400, max_length=400)

    def fail(*_: object) -> Blob:
        raise OutOfMemory("There is no memory for 1,000 bytes of state.")

    h.model.save_span = h.model.save_checkpoint = fail
    prompt = words(200)
    first = h.ask("a", prompt, cuts=(100,))
    h.idle()
    h.ask("other", words(350, 9), cuts=(100, 200, 300))
    h.ask("b", first + words(20, 1), cuts=(100, 200))
    assert h.reuse("b").num_cached_tokens == 0
    assert len([line for line in caplog.messages if "no memory" in line]) == 1


def test_saved_state_that_there_is_no_memory_to_load_is_computed_again():
    h = Harness(ATTENTION, num_cells=400, max_length=400)
    first = h.ask("a", words(200))
    h.idle()
    h.ask("other", words(350, 9))

    def fail(*_: object) -> None:
        raise OutOfMemory("No memory to load a snapshot.")

    h.model.load_span = fail
    h.ask("b", first + words(20, 1))
    assert h.reuse("b").num_cached_tokens == 0
    # It is still there for when there is memory again.
    del h.model.load_span
    h.ask("another", words(350, 8))
    h.ask("c", first + words(20, 2))
    assert h.reuse("c").num_loaded_tokens >= 200


def test_there_is_room_for_a_whole_snapshot_where_a_part_of_it_is_loaded():
    h = Harness(ATTENTION, num_cells=800, max_length=700)
    prompt = words(600)
    first = h.ask("a", prompt)
    h.idle()
    h.ask("other", words(690, 9))
    h.ask("b", prompt[:500] + words(20, 1))
    num_failures = 0
    load_span = h.model.load_span

    def load(*arguments: Any) -> None:
        nonlocal num_failures
        try:
            load_span(*arguments)
        except OutOfCells:
            num_failures += 1
            raise

    h.model.load_span = load
    # The rest of the first prompt would find room beside the branch that it shares its beginning with.
    h.ask("c", first + words(10, 2))
    assert num_failures == 0
    assert h.reuse("c").num_cached_tokens >= 600


def test_a_forced_reply_is_said_and_then_gone_on_from():
    h = Harness(ATTENTION)
    prompt = words(50)
    h.submit("a", prompt, forced=(7, 8, 9), new=5)
    while not h.engine.is_idle:
        h.step()
    assert h.reply("a")[:3] == [7, 8, 9]
    assert h.reply("a")[3] == int(h.model.expected_logits([*prompt, 7, 8, 9]).argmax())
    del h.prompts["a"]  # It is not what the model would have said.
    h.ask("b", prompt + h.reply("a"))
    assert h.reuse("b").num_computed_tokens == 1
