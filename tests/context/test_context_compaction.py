"""What could be taken out of a conversation, and whether it is worth it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.context.conversations import assistant, result, user

from kvstet.context.writing.budget import Budget
from kvstet.context.writing.compaction import FULL_SHARE, PRUNED, Compaction, View, best, prune, summarise
from kvstet.context.writing.payback import LOCAL, Payback, Rates
from kvstet.context.writing.toolset import with_announcement

Message = dict[str, Any]
BUDGET = Budget(context_length=101_000, num_reserved_tokens=1_000, keep_share=0.2)
CHEAP = Rates(read=0.1, write=1.25, output=5.0)


def view_of(messages: list[Message], sizes: list[int], **changed: Any) -> View:
    fields: dict[str, Any] = {
        "messages": messages,
        "num_tokens": sizes,
        "num_head_tokens": 5_000,
        "num_task_messages": 1,
        "budget": BUDGET,
        "rates": CHEAP,
        "num_expected_requests": 20,
    }
    return View(**{**fields, **changed})


def turns(*output_tokens: int, **changed: Any) -> View:
    """A task, and then one call and one output for each size."""
    messages, sizes = [user("Fix it.")], [100]
    for number, size in enumerate(output_tokens):
        messages += [assistant("", "{}", id=f"call_{number}"), result("x" * size, id=f"call_{number}")]
        sizes += [50, size]
    return view_of(messages, sizes, **changed)


def test_a_large_batch_of_old_outputs_is_pruned_and_the_latest_stay():
    found = prune(turns(*[5_000] * 12))
    assert found is not None
    assert list(found.replaced) == [10, 12, 14, 16], "the latest that are old, up to a fifth of the room"
    assert (found.start, found.stop, found.num_removed_tokens) == (10, 17, 20_000)
    assert all(message["content"] == PRUNED for message in found.replaced.values())
    assert found.replaced[10]["tool_call_id"] == "call_4"
    assert found.payback.cost_now == pytest.approx((4 * 5_000 + 7 * 50) * 1.15)
    assert found.payback.saved_per_request == pytest.approx(2_000)


@pytest.mark.parametrize("sizes", [[5_000] * 7, [19_000, *[20_000] * 4], [], [50] * 2_000, [30_000] * 3])
def test_nothing_is_pruned_in_small_pieces(sizes: list[int]):
    assert prune(turns(*sizes)) is None


def test_what_was_pruned_is_not_pruned_again():
    view = turns(*[30_000] * 5)
    found = prune(view)
    assert found is not None and list(found.replaced) == [2]
    pruned = [found.replaced.get(index, message) for index, message in enumerate(view.messages)]
    assert prune(view_of(pruned, list(view.num_tokens))) is None


def test_an_output_that_tells_of_tools_is_not_pruned():
    view = turns(*[30_000] * 5)
    messages = list(view.messages)
    messages[2] = with_announcement(messages[2], "A tool can be called from here on: grep")
    assert prune(view_of(messages, list(view.num_tokens))) is None


def test_a_picture_is_not_pruned():
    view = turns(*[30_000] * 5)
    messages = list(view.messages)
    messages[2] = {**messages[2], "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    assert prune(view_of(messages, list(view.num_tokens))) is None


def test_all_between_the_task_and_the_latest_messages_is_summarised():
    found = summarise(turns(*[6_000] * 8))
    assert found is not None
    assert (found.kind, found.start, found.stop) == ("summary", 1, 11), "three turns are within a fifth of the room"
    assert found.num_removed_tokens == 5 * 6_050
    assert found.payback.cost_now == pytest.approx(3 * 6_050 * 1.15 + 53_500 * 0.1 + 1_000 * 6.25)


def test_what_the_user_has_just_said_stays_however_long_it_is():
    view = turns(*[6_000] * 8)
    view = view_of([*view.messages, user("x"), user("y")], [*view.num_tokens, 21_000, 21_000])
    found = summarise(view)
    assert found is not None and found.stop == len(view.messages) - 2


def test_what_the_user_said_before_a_reply_that_stays_goes_if_there_is_no_room():
    view = turns(*[6_000] * 8)
    said, answered = [user("x"), user("y")], [assistant("Done.")]
    sizes = [*view.num_tokens, 15_000, 15_000, 1_000]
    found = summarise(view_of([*view.messages, *said, *answered], sizes))
    assert found is not None and found.stop == len(view.messages) + 1


def test_what_is_hardly_longer_than_a_summary_is_not_summarised():
    assert summarise(turns(500, 500, 19_900)) is None
    assert summarise(turns()) is None


@given(
    st.lists(st.tuples(st.sampled_from(["turn", "user", "parallel"]), st.integers(1, 30_000)), max_size=12),
    st.floats(0, 0.9),
)
def test_no_output_is_parted_from_its_call(script: list[tuple[str, int]], keep_share: float):
    messages, sizes = [user("Fix it.")], [100]
    for number, (kind, size) in enumerate(script):
        match kind:
            case "turn":
                messages += [assistant("", "{}", id=f"{number}"), result("", id=f"{number}")]
                sizes += [20, size]
            case "parallel":
                calls = [assistant("", "{}", id=f"{number}{part}")["tool_calls"][0] for part in "ab"]
                messages += [
                    {"role": "assistant", "content": "", "tool_calls": calls},
                    result("", id=f"{number}a"),
                    result("", id=f"{number}b"),
                ]
                sizes += [20, size // 2, size // 2]
            case _:
                messages.append(user("And?"))
                sizes.append(size)
    budget = Budget(context_length=101_000, num_reserved_tokens=1_000, keep_share=keep_share)
    found = summarise(view_of(messages, sizes, budget=budget))
    if found is not None:
        kept = messages[found.stop :]
        calls = {call["id"] for message in kept for call in message.get("tool_calls", ())}
        answers = {message["tool_call_id"] for message in kept if message["role"] == "tool"}
        assert calls == answers
        num_unanswered = next((place for place, each in enumerate(reversed(kept)) if each["role"] != "user"), len(kept))
        assert sum(sizes[found.stop : len(sizes) - num_unanswered]) <= budget.num_kept_tokens
        assert len(kept) or messages[-1]["role"] != "user"
        assert found.start == 1 and found.num_removed_tokens == sum(sizes[1 : found.stop])


def test_nothing_is_done_that_does_not_pay():
    assert best(turns(*[5_000] * 12, num_expected_requests=1)) is None
    assert best(turns(*[5_000] * 12, num_expected_requests=100)) is not None
    assert best(turns(*[5_000] * 12, rates=LOCAL, num_expected_requests=10**6)) is None


def test_a_conversation_that_is_full_is_shortened_whether_it_pays_or_not():
    full = turns(*[6_000] * 15, rates=LOCAL)
    found = best(full)
    assert full.is_full and found is not None and found.is_needed and not found.payback.pays


def test_where_it_is_full_what_makes_room_comes_before_what_pays_more():
    full = turns(*[6_500] * 14, num_expected_requests=1)
    pruned, summary = prune(full), summarise(full)
    assert full.is_full and pruned and summary
    gains = [each.payback.saved_per_request - each.payback.cost_now for each in (pruned, summary)]
    assert gains[0] > gains[1]
    left = full.num_prompt_tokens - pruned.num_removed_tokens
    assert left > BUDGET.num_prompt_tokens * (FULL_SHARE - 0.2)
    assert best(full) == summary


def test_of_what_pays_the_one_that_saves_most_is_taken():
    def costing(cost: float) -> Any:
        paid = Payback(cost_now=cost, saved_per_request=10.0, num_expected_requests=10)
        return lambda view: Compaction(
            kind="prune", start=1, stop=2, num_removed_tokens=100, payback=paid, is_needed=False
        )

    found = best(turns(100), [costing(50), costing(20), costing(99), lambda view: None])
    assert found is not None and found.payback.cost_now == 20
    assert best(turns(100), [costing(100), costing(1000)]) is None
    assert best(turns(100), []) is None
