"""The three rules: whatever is said, a request begins with the one before it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.context.conversations import assistant, tool, user

from kvstet.context.conversation import Context
from kvstet.context.writing.budget import Budget
from kvstet.context.writing.compaction import INSTRUCTION, PRUNED, Compaction, View, prune
from kvstet.context.writing.payback import Rates
from kvstet.errors import BrokenHistory

CHEAP = Rates(read=0.1, write=1.25, output=5.0)
SMALL = Budget(context_length=6_000, num_reserved_tokens=500, keep_share=0.2)
Step = Callable[[Context], None]


def turn(number: int, size: int) -> Step:
    def take(context: Context) -> None:
        context.assistant(assistant("Hm.", '{"path": "."}', id=f"call_{number}"))
        context.result(f"call_{number}", "ls", f"found {number}\n" * size)

    return take


def parallel(number: int) -> Step:
    def take(context: Context) -> None:
        calls = [assistant("", "{}", id=f"call_{number}{part}")["tool_calls"][0] for part in "ab"]
        context.assistant({"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "Both."})
        for part in "ab":
            context.result(f"call_{number}{part}", "ls", "found")

    return take


def says(text: str) -> Step:
    def say(context: Context) -> None:
        context.user(text)
        context.assistant(assistant("Done."))

    return say


def noting(name: str, text: str) -> Step:
    return lambda context: context.note(name, text)


def with_tools(names: Sequence[str]) -> Step:
    return lambda context: context.set_tools(map(tool, names))


STEPS = st.one_of(
    st.builds(turn, st.integers(0, 99), st.sampled_from([1, 10, 200, 3_000])),
    st.builds(parallel, st.integers(0, 99)),
    st.builds(says, st.sampled_from(["And now?", "Again.", "x" * 3_000])),
    st.builds(noting, st.sampled_from(["date", "git status"]), st.sampled_from(["a", "b", "c"])),
    st.builds(with_tools, st.sets(st.sampled_from(["bash", "grep", "web", "ls"])).map(sorted)),
)
SCRIPTS = st.lists(STEPS, max_size=25)


def fresh(**options: Any) -> Context:
    context = Context(
        "You are an agent.", [tool("ls"), tool("bash")], **{"takes_late_tools": True, "budget": SMALL, **options}
    )
    context.note("date", "2026-11-22")
    context.user("Fix the failing test.")
    return context


def messages_of(request: dict[str, Any]) -> list[str]:
    return [json.dumps(message) for message in request["messages"]]


def goes_on(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Byte for byte."""
    first = messages_of(before)
    return messages_of(after)[: len(first)] == first and json.dumps(after["tools"]) == json.dumps(before["tools"])


def is_paired(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether all calls are answered right behind them, and nothing else is."""
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in open_calls:
                return False
            open_calls.remove(message["tool_call_id"])
        elif open_calls:
            return False
        else:
            open_calls = [call["id"] for call in message.get("tool_calls") or ()]
    return not open_calls


@settings(max_examples=60)
@given(SCRIPTS)
def test_every_request_begins_with_the_one_before_it(script: list[Step]):
    context = fresh()
    before = context.request()
    for step in script:
        step(context)
        after = context.request()
        assert goes_on(before, after)
        assert goes_on(after, context.summary_request())
        before = after


@settings(max_examples=60)
@given(SCRIPTS, st.integers(1, 40))
def test_compaction_keeps_the_head_the_task_and_whole_turns(script: list[Step], num_expected: int):
    context = fresh()
    for step in script:
        step(context)
        proposal = context.compaction(CHEAP, num_expected_requests=num_expected)
        if proposal is not None:
            before, num_before = context.request(), context.num_tokens
            context.compact(proposal, "All is well." if proposal.kind == "summary" else "")
            after = context.request()
            num_kept = 1 + proposal.start
            assert messages_of(after)[:num_kept] == messages_of(before)[:num_kept]
            assert messages_of(after)[1] == messages_of(before)[1], "the task"
            assert json.dumps(after["tools"]) == json.dumps(before["tools"])
            assert is_paired(after["messages"])
            num_tail = len(before["messages"]) - 1 - proposal.stop
            assert messages_of(after)[len(after["messages"]) - num_tail :] == messages_of(before)[1 + proposal.stop :]
            assert context.num_tokens < num_before
            summaries = [text for text in messages_of(after) if "Summary of the conversation so far" in text]
            assert len(summaries) <= 1, "a summary tells what the one before it told"


@settings(max_examples=60)
@given(SCRIPTS, SCRIPTS, st.booleans())
def test_a_stored_conversation_goes_on_as_it_would_have(first: list[Step], then: list[Step], is_forked: bool):
    context = fresh()
    for step in first:
        step(context)
    stored = context.to_json()
    again = context.fork() if is_forked else Context.from_json(stored)
    assert again.to_json() == stored
    for step in [*then, says("Go on.")]:
        step(context)
        step(again)
        assert json.dumps(again.request()) == json.dumps(context.request())
        assert (again.num_tokens, again.tool_names) == (context.num_tokens, context.tool_names)
        proposals = [each.compaction(CHEAP) for each in (context, again)]
        assert proposals[0] == proposals[1]
        if proposals[0] is not None:
            context.compact(proposals[0], "Well.")
            again.compact(proposals[0], "Well.")
    assert again.to_json() == context.to_json()


def test_a_fork_shares_its_beginning_and_nothing_else():
    context = fresh()
    fork = context.fork()
    fork.user("Look into it.")
    assert len(context.history) == 1
    assert goes_on(context.request(), fork.request())
    assert fork.history.num_common(context.history) == 1


def test_what_varies_is_told_once_and_only_when_it_is_new():
    context = fresh()
    assert context.request()["messages"] == [
        {"role": "system", "content": "You are an agent."},
        user("<system-reminder>\ndate: 2026-11-22\n</system-reminder>\n\nFix the failing test."),
    ]
    context.assistant(assistant("Done."))
    context.note("date", "2026-11-22")
    context.note("git status", " M a.py")
    context.note("git status", "clean")
    context.user("And?")
    assert context.history.messages[-1]["content"] == "<system-reminder>\ngit status: clean\n</system-reminder>\n\nAnd?"
    context.user("And now?")
    assert context.history.messages[-1] == user("And now?")


def test_a_request_is_a_copy():
    context = fresh()
    before = json.dumps(context.request())
    request = context.request()
    request["messages"][0]["content"] = "Something else."
    request["messages"].append(user("x"))
    request["tools"][0]["function"]["name"] = "rm"
    request["tools"].clear()
    assert json.dumps(context.request()) == before


def test_the_tools_that_were_handed_over_can_be_changed_afterwards():
    given_tools = [tool("ls")]
    context = Context("", given_tools)
    given_tools[0]["function"]["name"] = "rm"
    assert context.tool_names == {"ls"}
    assert context.request() == {"messages": [], "tools": [tool("ls")]}


def test_without_system_prompt_and_tools_there_are_none():
    context = Context("")
    context.user("Hi")
    assert context.request() == {"messages": [user("Hi")]}


def test_tools_that_come_and_go_are_told_in_the_next_message_and_called_through_another():
    context = fresh()
    context.set_tools([tool("ls"), tool("web")])
    assert context.tool_names == {"ls", "web"}
    turn(1, 1)(context)
    (told,) = [message for message in context.history.messages if message["role"] == "tool"]
    assert '"name": "web"' in told["content"] and "The tool bash can no longer be called." in told["content"]
    assert told["content"].endswith("found 1\n")
    assert context.resolved("use_tool", '{"name": "web", "arguments": {"q": 1}}') == ("web", '{"q": 1}')


@settings(max_examples=60)
@given(SCRIPTS)
def test_tools_that_came_late_are_known_after_any_compaction(script: list[Step]):
    context = fresh()
    context.set_tools([tool("ls"), tool("web")])
    context.user("Go on.")
    for step in script:
        step(context)
        proposal = context.compaction(CHEAP)
        if proposal is not None:
            context.compact(proposal, "Well.")
            context.user("And?")  # takes whatever is still to be told with it
            text = json.dumps(context.request()["messages"])
            for name in context.tool_names - {"ls", "bash"}:
                assert f'\\"name\\": \\"{name}\\"' in text


def test_an_output_is_cut_when_it_enters():
    context = fresh(max_output_characters=1_000)
    context.assistant(assistant("", "{}"))
    context.result("call_1", "ls", "x" * 50_000)
    assert 1_000 < len(context.history.messages[-1]["content"]) < 1_100


def test_a_summary_is_asked_of_the_live_prefix_and_takes_the_place_of_what_it_tells():
    context = fresh(budget=Budget(context_length=10_000, num_reserved_tokens=1_000, keep_share=0.1))
    for number in range(12):
        turn(number, 250)(context)
    proposal = context.compaction(CHEAP)
    assert proposal is not None and proposal.kind == "summary" and proposal.is_needed
    asked = context.summary_request()
    assert asked["messages"][:-1] == context.request()["messages"] and asked["tools"] == context.request()["tools"]
    assert asked["messages"][-1] == user(INSTRUCTION)
    with pytest.raises(ValueError, match="empty"):
        context.compact(proposal, "  ")
    assert asked["messages"][:-1] == context.request()["messages"], "nothing was done"
    context.compact(proposal, " Eleven were found.\n")
    messages = context.history.messages
    assert messages[0]["content"].endswith("Fix the failing test.")
    assert messages[1]["content"].endswith("stood here:\n\nEleven were found.")
    context.user("And?")
    assert "date: 2026-11-22" in context.history.messages[-1]["content"], "what was told may be gone: told again"


def test_outputs_that_are_pruned_leave_a_note():
    context = fresh(budget=Budget(context_length=30_000, num_reserved_tokens=1_000), strategies=[prune])
    for number in range(9):
        turn(number, 1_000)(context)
    proposal = context.compaction(CHEAP, num_expected_requests=200)
    assert proposal is not None and proposal.kind == "prune"
    before = context.history.messages
    context.compact(proposal)
    changed = [index for index, message in enumerate(context.history.messages) if message != before[index]]
    assert changed == [*proposal.replaced]
    assert {context.history.messages[index]["content"] for index in changed} == {PRUNED}


def test_what_the_provider_counts_makes_the_estimate_better():
    context = fresh()
    turn(1, 100)(context)
    context.observe(1_000)
    assert context.num_tokens == pytest.approx(1_000, rel=0.02)
    context.observe(2_000)
    assert context.num_tokens == pytest.approx(2_000, rel=0.02)
    assert Context.from_json(context.to_json()).num_tokens == context.num_tokens
    for nothing in (None, 0):
        context.observe(nothing)
    assert context.num_tokens == pytest.approx(2_000, rel=0.02)


def test_a_strategy_and_a_tokenizer_of_ones_own_are_asked_in_a_fork_too():
    seen: list[View] = []

    def none(view: View) -> Compaction | None:
        seen.append(view)
        return None

    context = fresh(strategies=[none], count=len)
    fork = context.fork()
    assert fork.compaction() is None and fork.num_tokens == context.num_tokens
    assert seen[0].num_task_messages == 1 and seen[0].num_tokens == [len(entry.text) for entry in context.history]


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"version": 2}', '{"version": 1, "system": ""}', fresh().to_json()[:-9], "[" * 100_000]
)
def test_what_is_no_stored_conversation_is_said(text: str):
    with pytest.raises(BrokenHistory):
        Context.from_json(text)


def test_a_message_that_was_changed_in_the_store_is_found():
    stored = fresh().to_json()
    assert "failing" in stored
    with pytest.raises(BrokenHistory):
        Context.from_json(stored.replace("failing", "passing"))
