from __future__ import annotations

import pytest

from kvstet.edits.verdict import Verdict, verdict
from kvstet.types import MessageSpan, Reuse

SPANS = (
    MessageSpan(0, 1000, 0, "system"),
    MessageSpan(1000, 1500, 1, "user"),
    MessageSpan(1500, 1800, 2, "assistant"),
    MessageSpan(1800, 3000, 3, "tool"),
    MessageSpan(3000, 3003, None, "assistant"),
)
NUM_TOKENS = 3003


def reuse(known: int, cached: int, *, loaded: int = 0, shifted: int = 0) -> Reuse:
    return Reuse(cached - loaded - shifted, loaded, shifted, NUM_TOKENS - cached, known)


def test_nothing_known_is_a_new_conversation():
    found = verdict(reuse(0, 0), SPANS)
    assert found == Verdict(
        "cold",
        "New conversation: nothing like it was cached; computed 3,003 of 3,003 tokens.",
        message=0,
        role="system",
        token=0,
    )


def test_the_header_that_all_prompts_share_does_not_make_a_conversation_known():
    found = verdict(reuse(3, 3), SPANS)
    assert found.kind == "cold"
    assert "nothing like it was cached beyond its first 3 tokens" in found.sentence


def test_new_messages_after_a_known_path_are_an_append():
    found = verdict(reuse(1800, 1800), SPANS)
    assert found == Verdict(
        "append",
        "Appended: computed 1,203 of 3,003 tokens, new from message 3 (tool) on; messages 0-2 were reused.",
        message=3,
        role="tool",
        token=1800,
    )


@pytest.mark.parametrize("num_missing", [1, 2])
def test_a_reply_whose_closing_tokens_were_never_seen_is_still_appended_to(num_missing: int):
    found = verdict(reuse(1800 - num_missing, 1800 - num_missing), SPANS)
    assert (found.kind, found.message) == ("append", 3)


def test_a_user_message_that_ends_differently_diverged():
    found = verdict(reuse(1499, 1499), SPANS)
    assert (found.kind, found.message, found.role, found.token) == ("diverged", 1, "user", 1499)


def test_a_changed_message_is_named_with_the_place_in_it():
    found = verdict(reuse(1803, 1803), SPANS)
    assert found == Verdict(
        "diverged",
        "Computed 1,200 of 3,003 tokens: the prompt left the cached path in message 3 (tool), 3 tokens in;"
        " messages 0-2 were reused.",
        message=3,
        role="tool",
        token=1803,
    )


def test_a_change_in_the_first_message_reuses_no_message():
    found = verdict(reuse(400, 400), SPANS)
    assert found.sentence.endswith("in message 0 (system), 400 tokens in.")


def test_one_token_is_spelt_in_the_singular():
    assert "message 1 (user), 1 token in; message 0 was reused." in verdict(reuse(1001, 1001), SPANS).sentence


def test_known_tokens_without_state_are_an_eviction():
    found = verdict(reuse(3000, 0), SPANS)
    assert found == Verdict(
        "evicted",
        "Computed 3,003 of 3,003 tokens: the state of 3,000 tokens that were known had been evicted or could not be"
        " resumed.",
        message=0,
        role="system",
        token=0,
    )


def test_an_eviction_in_the_middle_says_where_it_begins():
    found = verdict(reuse(3003, 1500), SPANS)
    assert (found.kind, found.message, found.token) == ("evicted", 2, 1500)
    assert "resumed from message 2 (assistant) on; messages 0-1 were reused." in found.sentence


def test_a_few_tokens_before_a_checkpoint_are_not_an_eviction():
    found = verdict(reuse(1803, 1790), SPANS)
    assert found.kind == "diverged"
    assert "; 13 of them were known, but could not be resumed; messages 0-1 were reused." in found.sentence


def test_new_tokens_outweigh_lost_ones():
    assert verdict(reuse(1800, 1500), SPANS).kind == "append"


@pytest.mark.parametrize(("known", "cached"), [(NUM_TOKENS, NUM_TOKENS - 1), (3000, 3000), (3002, 3002)])
def test_a_prompt_that_only_lacks_its_end_was_cached(known: int, cached: int):
    found = verdict(reuse(known, cached), SPANS)
    assert (found.kind, found.message, found.token) == ("cached", None, None)
    assert found.sentence.endswith("the whole conversation was cached.")


def test_loaded_tokens_count_as_reused_messages():
    assert "messages 0-2 were reused" in verdict(reuse(1803, 1803, loaded=1000), SPANS).sentence


def test_shifted_tokens_are_told_and_are_no_reused_prefix():
    found = verdict(reuse(1100, 2100, shifted=1000), SPANS)
    assert "; 1,000 tokens kept their state at moved positions (approximate); message 0 was reused." in found.sentence


def test_a_prompt_without_messages_tells_the_token():
    spans = (MessageSpan(0, NUM_TOKENS, None, "prompt"),)
    found = verdict(reuse(2000, 2000), spans)
    assert found == Verdict(
        "diverged", "Computed 1,003 of 3,003 tokens: the prompt left the cached path at token 2,000.", token=2000
    )
    assert verdict(reuse(2000, 2000), ()) == found
