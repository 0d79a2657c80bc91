"""What edits cost (`kvstet.edits.pricing`), and how the verdict tells it."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from tests.edits.samples import TOOLS, Message, conversation, snap, user

from kvstet.edits.history import History
from kvstet.edits.pricing import estimated
from kvstet.edits.snapshot import Snapshot
from kvstet.edits.verdict import Verdict, explained, for_log
from kvstet.types import MessageSpan, Reuse

LENGTH = 100
"""Tokens of each message."""


def spans(num_messages: int) -> tuple[MessageSpan, ...]:
    roles = ["system", "user", *["assistant", "tool"] * num_messages]
    told = [MessageSpan(LENGTH * index, LENGTH * (index + 1), index, roles[index]) for index in range(num_messages)]
    return (*told, MessageSpan(LENGTH * num_messages, LENGTH * num_messages + 3, None, "assistant"))


def explain(
    before: Snapshot,
    messages: list[Message],
    known: int,
    *,
    cached: int | None = None,
    seconds: float = 10.0,
    tools: object = TOOLS,
    unthought: tuple[int, ...] = (),
) -> Verdict:
    """Of a request of messages of 100 tokens each, of which ``known`` tokens were known."""
    history = History()
    place = history.note(before)
    history.reply(place.branch, before.reply or before.reply_of("", "", []))
    sent = snap(messages, tools)
    after = replace(sent, spans=spans(len(messages)), unthought=frozenset(unthought))
    num_prompt, reused = after.spans[-1].stop, known if cached is None else cached
    return explained(history.note(after), after, Reuse(reused, 0, 0, num_prompt - reused, known), seconds)


def stubbed(*indices: int) -> list[Message]:
    messages = deepcopy(conversation())
    for index in indices:
        messages[index]["content"] = "[cleared]"
    return [*messages, user("And now?")]


def test_the_earliest_edit_pays_for_all_that_lies_behind_it():
    verdict = explain(snap(conversation()), stubbed(3, 7), 310)
    first, second = verdict.edits
    # Six messages are as they were, two are new, and one was known for its first tokens.
    assert (first.kind, first.message, first.token) == ("result_replaced", 3, 310)
    assert first.num_tokens == first.num_tokens_alone == 6 * LENGTH - 100 + 0
    assert (second.num_tokens, second.num_tokens_alone, second.token) == (0, 2 * LENGTH, 700)
    assert first.seconds is not None and abs(first.seconds - 10 * 500 / 793) < 0.01


def test_the_sentence_says_who_did_what_where_and_what_it_cost():
    verdict = explain(snap(conversation()), stubbed(3, 7), 310, seconds=21.0)
    assert verdict.sentence == (
        "Recomputed 500 tokens: the client replaced 2 tool results by stubs, in messages 3 and 7; 13 s."
        " Computed 793 of 1,103 tokens in all; messages 0-2 were reused."
    )
    assert (verdict.kind, verdict.message, verdict.role, verdict.token) == ("diverged", 3, "tool", 310)


def test_an_edit_in_front_of_what_was_known_changed_nothing():
    verdict = explain(snap(conversation()), stubbed(3), 1000)
    assert (verdict.kind, verdict.edits) == ("append", ())


def test_what_is_appended_is_no_one_s_fault():
    verdict = explain(snap(conversation()), [*conversation(), user("And now?")], 1000)
    assert (verdict.kind, verdict.edits) == ("append", ())


def test_a_template_that_leaves_reasoning_out_is_found_behind_equal_messages():
    before = snap(conversation())
    verdict = explain(
        before.with_reply(before.reply_of("Done.", "", [])),
        [*conversation(), user("And now?")],
        210,
        unthought=(2, 4, 6, 8),
    )
    (edit,) = verdict.edits
    assert (edit.kind, edit.message, edit.num_tokens) == ("reasoning_stripped_by_template", 2, 790)
    assert "the chat template leaves out reasoning from message 2 (assistant) on" in verdict.sentence


def test_a_reply_that_came_back_in_other_tokens():
    before = snap(conversation()).with_reply(snap([]).reply_of("Done.", "", []))
    messages = [*conversation(), {"role": "assistant", "content": "Done."}, user("And now?")]
    (edit,) = explain(before, messages, 1040).edits  # in its middle
    assert (edit.kind, edit.message, edit.num_tokens) == ("retokenised", 10, 60)


def test_arguments_that_came_back_in_another_spelling():
    before = snap(conversation()[:-2])
    reply = before.reply_of("", "", [("read", '{"path":   "9.txt"}')])
    spelt = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"function": {"name": "read", "arguments": {"path": "9.txt"}}}],
    }
    messages = [*conversation()[:-2], spelt, {"role": "tool", "content": "Nine."}]
    (edit,) = explain(before.with_reply(reply), messages, 850).edits
    assert (edit.kind, edit.message, edit.num_tokens) == ("arguments_reserialised", 8, 50)


def test_another_template_is_seen_in_the_head():
    before = snap(conversation())
    (edit,) = explain(before, [*conversation(), user("And now?")], 30).edits
    assert (edit.kind, edit.num_tokens) == ("other_template", 970)


def test_a_prompt_that_was_never_computed_whole_is_no_ones_fault():
    history = History()
    history.note(snap(conversation()))
    after = Snapshot(
        **{name: getattr(snap(conversation()), name) for name in Snapshot.__slots__} | {"spans": spans(10)}
    )
    verdict = explained(history.note(after), after, Reuse(450, 0, 0, 553, 450), 1.0)
    assert verdict.edits == ()


def test_evicted_state_is_told_with_its_tokens():
    verdict = explain(snap(conversation()), [*conversation(), user("And now?")], 1000, cached=400)
    (edit,) = verdict.edits
    assert (edit.kind, edit.token, edit.num_tokens) == ("evicted", 400, 600)
    assert verdict.kind == "evicted"


def test_what_was_evicted_is_not_charged_to_an_edit():
    verdict = explain(snap(conversation()), stubbed(7), 710, cached=500)
    evicted, edit = verdict.edits
    assert (evicted.kind, evicted.num_tokens) == ("evicted", 210)
    assert (edit.kind, edit.num_tokens) == ("result_replaced", 200)


def test_changed_tools_take_effect_at_the_head():
    verdict = explain(snap(conversation()), [*conversation(), user("And now?")], 40, tools=TOOLS[:-1])
    (edit,) = verdict.edits
    assert (edit.kind, edit.what, edit.token, edit.num_tokens) == ("tools_removed", ("task",), 40, 960)


def test_the_log_tells_no_names_that_the_client_chose():
    verdict = explain(snap(conversation()), [*conversation(), user("And now?")], 40, tools=TOOLS[:-1])
    assert "tools are missing (task); 9.0 s" in verdict.sentence
    assert "tools are missing (1); 9.0 s" in for_log(verdict)
    assert "task" not in for_log(verdict)


def test_without_a_model_tokens_are_estimated():
    history = History()
    place = history.note(snap(conversation()))
    history.reply(place.branch, snap([]).reply_of("Done.", "", []))
    place = history.note(snap(stubbed(5)))
    after, reuse = estimated(place, snap(stubbed(5)))
    verdict = explained(place, after, reuse, None)
    (edit,) = verdict.edits
    assert after.spans[5].start <= reuse.num_known_tokens < after.spans[5].stop
    assert edit.num_tokens is not None and 0 < edit.num_tokens <= reuse.num_computed_tokens
    assert verdict.sentence.startswith(
        f"Recomputed {edit.num_tokens} tokens: the client replaced the tool result in message 5"
    )
    assert " s. " not in verdict.sentence


def test_a_new_message_whose_opening_was_foreseen_is_appended():
    """It was computed while nobody asked, so the known path ends within it."""
    messages = conversation()
    reply = {"role": "assistant", "content": ""}
    verdict = explain(snap(messages), [*messages, reply, user("And now?")], LENGTH * (len(messages) + 1) + 3)
    assert verdict.kind == "append"
    assert verdict.sentence.startswith("Appended: computed ")
    assert verdict.edits == ()
