"""Requests of clients, arranged: what was said once is said the same way ever after, and every change has a name."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.context.conversations import assistant, head, result, tool, user
from tests.context.growth import OUTPUT, growing
from tests.context.recorded import NAMES, Body, Recorded, damaged, requests_of, written

from kvstet.context.arranging import optimiser as module
from kvstet.context.arranging.lens import DialectName, lens_of
from kvstet.context.arranging.optimiser import ARRANGEMENTS, Arranged, Optimiser
from kvstet.providers.provider import Provider, provider_named

ANTHROPIC, OPENAI, OPENROUTER, LOCAL = map(provider_named, ("anthropic", "openai", "openrouter", "kvstet"))
ROOM = 200_000
"""Tokens of a context in which all fits."""

HOSTED: dict[DialectName, Provider] = {"chat": OPENAI, "messages": ANTHROPIC, "responses": OPENAI}


def arranged_all(
    optimiser: Optimiser, requests: Sequence[Recorded], **options: Any
) -> list[tuple[Recorded, Arranged, Body]]:
    """Each request with what becomes of it, and the body that was handed over."""
    found: list[tuple[Recorded, Arranged, Body]] = []
    for recorded in requests:
        body = recorded.body
        found.append((recorded, optimiser.arrange(body, recorded.dialect, **options), body))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_recorded_sessions_are_arranged_alike_each_time_and_never_in_place(name: str):
    requests = requests_of(name)
    provider = HOSTED[requests[0].dialect]
    once, again = (arranged_all(Optimiser(provider, max_output_characters=8_000), requests) for _ in range(2))
    for (recorded, arranged, body), (_, other, _) in zip(once, again, strict=True):
        assert written(body) == written(recorded.body)
        assert written(arranged.body) == written(other.body) and arranged == other
        assert (arranged.body is body) == (arranged.changes == ()), "what has no changes is the very same"
        assert all(change.name in ARRANGEMENTS for change in arranged.changes)


def spelt(body: Body, dialect: DialectName) -> list[str]:
    """What the model reads, in order, piece by piece: the tools, and each text or call."""
    lens = lens_of(body, dialect)
    return [written(lens.tools), *map(written, lens.messages)]


def num_common(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


@pytest.mark.parametrize("limit", [None, 2_000])
@pytest.mark.parametrize("name", NAMES)
def test_what_was_sent_once_is_said_the_same_way_ever_after(name: str, limit: int | None):
    requests = requests_of(name)
    optimiser = Optimiser(HOSTED[requests[0].dialect], max_output_characters=limit)
    mains = [each for each in arranged_all(optimiser, requests) if each[0].kind.startswith("main")]
    shorter = [
        (recorded.number, before, after)
        for (last, last_arranged, _), (recorded, arranged, _) in pairwise(mains)
        if (after := num_common(*(spelt(each.body, recorded.dialect) for each in (last_arranged, arranged))))
        < (before := num_common(*(spelt(each.body, recorded.dialect) for each in (last, recorded))))
    ]
    assert shorter == []


def test_where_a_client_changes_its_past_more_stays_the_same():
    """Continue tells the git status in its system prompt, and changes it with each edit."""
    found = arranged_all(Optimiser(OPENAI), requests_of("continue"))
    pairs = [(one, other) for one, other in pairwise(found) if other[0].kind.startswith("main")]
    sent = [num_common(spelt(one[0].body, "chat"), spelt(other[0].body, "chat")) for one, other in pairs]
    said = [num_common(spelt(one[1].body, "chat"), spelt(other[1].body, "chat")) for one, other in pairs]
    assert sent.count(1) == 2, "the tools, and nothing behind them"
    assert all(after >= before for before, after in zip(sent, said, strict=True)) and 1 not in said


@settings(max_examples=80)
@given(damaged(), st.sampled_from([ANTHROPIC, OPENAI, LOCAL]), st.sampled_from([None, 50]))
def test_whatever_a_body_holds_it_goes_out_and_is_not_changed_in_place(
    found: tuple[DialectName, Body], provider: Provider, limit: int | None
):
    dialect, body = found
    optimiser = Optimiser(provider, max_output_characters=limit, num_context_tokens=100)
    for recorded in requests_of("pi")[:2]:
        optimiser.arrange(recorded.body, dialect)
    before = repr(body)
    for _ in range(2):
        arranged = optimiser.arrange(body, dialect)
        assert repr(body) == before
        json.dumps(arranged.body)


@pytest.mark.parametrize("depth", [300, 900, 5_000])
def test_what_is_nested_too_deeply_goes_out_as_it_came(depth: int):
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    body = {"messages": [{"role": "user", "content": [{"type": "odd", "value": value}]}, user("Hi")]}
    arranged = Optimiser(LOCAL).arrange(body, "chat")
    assert arranged.body is body


# Names


def turn(number: int, arguments: str, output: str) -> list[Any]:
    return [assistant("Hm.", arguments, id=f"call_{number}"), result(output, id=f"call_{number}")]


def chat(*messages: Any, tools: Sequence[Any] = (tool("a"), tool("b"))) -> Body:
    return {"model": "m", "messages": copy.deepcopy(list(messages)), "tools": list(tools)}


def two_heads(first: str, second: str) -> list[Body]:
    rules = "\n".join(f"{number}. Do it well." for number in range(30))
    heads = [{"role": "system", "content": f"You are an agent.\n{rules}\n{line}\n{rules}"} for line in (first, second)]
    history = [user("Fix it."), *turn(1, "{}", "found")]
    return [chat(heads[0], *history[:1]), chat(heads[1], *history)]


REMINDER = "Fix it.\n<system-reminder>\n{} files are open.\n</system-reminder>"
LONG = [user("Fix the failing test, please."), *turn(1, "{}", OUTPUT * 10), assistant("It is fixed by now, at last.")]
TRANSCRIPT = (
    "Sum up:\n<log>\nFix the failing test, please.\nHm.\n[Result]\nIt is fixed by now, at last.\nThank you.\n</log>\n"
)


def transcript(num_outputs: int) -> Body:
    """A request for a summary, with so much of the output in it."""
    return {"model": "m", "messages": [user(TRANSCRIPT.replace("[Result]", OUTPUT * num_outputs))]}


SCENARIOS: dict[str, list[Body]] = {
    "clock": two_heads("The time is now 10:00:00", "The time is now 11:30:00"),
    "date": two_heads("Today's date: 2026-11-21", "Today's date: 2026-11-22"),
    "git-status": [chat(head(git="(clean)"), user("Fix it.")), chat(head(git=" M a.py"), user("Fix it."))],
    "request-id": two_heads("Request id: abc123def", "Request id: 456abc789"),
    "billing-header": [chat(head(billing="abc"), user("Fix it.")), chat(head(billing="xyz"), user("Fix it."))],
    "counter": two_heads("Tokens used: 1000", "Tokens used: 2000"),
    "system-lines": two_heads("Mode: plan", "Mode: build"),
    "reminder": [
        chat(head(), user(REMINDER.format("Two"))),
        chat(head(), user(REMINDER.format("No")), *turn(1, "{}", "found")),
    ],
    "tool-order": [chat(user("Hi"), tools=[tool("a"), tool("b")]), chat(user("Hi"), tools=[tool("b"), tool("a")])],
    "arguments": [
        chat(user("Hi"), *turn(1, '{"path": ".", "n": 1}', "found")),
        chat(user("Hi"), *turn(1, '{"n":1,"path":"."}', "found"), user("And?")),
    ],
    "tool-output": [
        chat(user("Hi"), *turn(1, "{}", OUTPUT)),
        chat(user("Hi"), *turn(1, "{}", "[Old tool result content cleared]"), user("And?")),
    ],
    "summary-request": [chat(head(), *LONG, user("Thank you.")), transcript(1)],
    "outputs": [chat(user("Hi"), *turn(1, "{}", OUTPUT * 10))],
    "breakpoints": [{**chat(head(), user("Hi")), "model": "anthropic/claude-sonnet-4.5"}],
    "cache-key": [chat(head(), user("Hi"))],
}
"""Requests, of which the last shows the change."""

PROVIDERS = {"breakpoints": OPENROUTER, "cache-key": OPENAI}


def last_of(name: str, optimiser: Optimiser, **options: Any) -> Arranged:
    found = [optimiser.arrange(copy.deepcopy(body), "chat", **options) for body in SCENARIOS[name]]
    return found[-1]


def optimiser_for(name: str, **options: Any) -> Optimiser:
    return Optimiser(PROVIDERS.get(name, LOCAL), max_output_characters=1_000, num_context_tokens=ROOM, **options)


def test_there_is_a_scenario_for_each_change():
    assert SCENARIOS.keys() == ARRANGEMENTS.keys()


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_each_change_is_made_and_disappears_where_it_is_switched_off(name: str):
    with_it = last_of(name, optimiser_for(name))
    assert name in {change.name for change in with_it.changes}
    for without in (
        last_of(name, optimiser_for(name, without=[name])),
        last_of(name, optimiser_for(name), without=[name]),
    ):
        assert name not in {change.name for change in without.changes}
        assert written(without.body) != written(with_it.body)
    if len(with_it.changes) == 1:
        assert last_of(name, optimiser_for(name, without=[name])).body == SCENARIOS[name][-1]


@pytest.mark.parametrize("name", NAMES)
def test_with_all_switched_off_every_body_is_the_very_same(name: str):
    optimiser = Optimiser(HOSTED[requests_of(name)[0].dialect], without=ARRANGEMENTS, max_output_characters=100)
    for _, arranged, body in arranged_all(optimiser, requests_of(name)):
        assert arranged.body is body and arranged.changes == () and arranged.headers == ()


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_what_changed_is_told_without_quoting_anything(name: str):
    arranged = last_of(name, optimiser_for(name))
    texts = {
        word for body in SCENARIOS[name] for message in body["messages"] for word in message["content"].split("\n")
    }
    assert not any(text in change.what for change in arranged.changes for text in texts if len(text) > 3)
    assert all(change.entry is None or 0 <= change.entry < 20 for change in arranged.changes)


# Owners


@settings(max_examples=25)
@given(growing(), growing())
def test_what_one_owner_gets_does_not_depend_on_another(
    ours: list[tuple[list[Any], list[Any]]], theirs: list[tuple[list[Any], list[Any]]]
):
    alone, together = Optimiser(ANTHROPIC), Optimiser(ANTHROPIC)
    for index in range(max(len(ours), len(theirs))):
        for messages, tools in theirs[index : index + 1]:
            marked_messages = json.loads(json.dumps(messages).replace("something that a tool", "a secret that a tool"))
            together.arrange({"messages": marked_messages, "tools": tools}, "chat", owner="them")
        for messages, tools in ours[index : index + 1]:
            body = {"messages": messages, "tools": tools}
            said = [each.arrange(body, "chat", owner="us") for each in (alone, together)]
            assert said[0] == said[1] and "secret" not in written(said[1].body)


def test_a_summary_does_not_ride_on_what_another_owner_said():
    optimiser = optimiser_for("summary-request")
    first, asked = SCENARIOS["summary-request"]
    optimiser.arrange(first, "chat", owner="them")
    assert optimiser.arrange(asked, "chat", owner="us").body is asked
    assert optimiser.arrange(asked, "chat", owner="them").changes != ()


def test_a_key_is_of_one_owner_and_of_one_head_or_session():
    """Conversations of one client meet on one machine, where the head that they share is cached."""
    optimiser = Optimiser(OPENAI)

    def key(text: str, instructions: str = "You are an agent.", **options: Any) -> str:
        body = chat({"role": "system", "content": instructions}, user(text))
        return optimiser.arrange(body, "chat", **options).body["prompt_cache_key"]

    assert key("Hi", owner="a") == key("Ho", owner="a") != key("Hi", owner="b")
    assert key("Hi", owner="a") != key("Hi", "You are a poet.", owner="a")
    assert key("Hi", owner="a", session="s") == key("Hi", "You are a poet.", owner="a", session="s")
    assert key("Hi", owner="a", session="s") not in (key("Hi", owner="a"), key("Hi", owner="b", session="s"))


# Riding


def test_a_request_that_rides_goes_where_the_conversation_is_cached():
    optimiser = Optimiser(OPENAI, num_context_tokens=ROOM)
    first, _ = SCENARIOS["summary-request"]
    key = optimiser.arrange(first, "chat").body["prompt_cache_key"]
    arranged = optimiser.arrange(transcript(20), "chat")
    assert {change.name for change in arranged.changes} >= {"summary-request", "cache-key"}
    assert arranged.body["prompt_cache_key"] == key


def test_a_request_rides_only_where_that_costs_less_and_where_there_is_room():
    first, asked = SCENARIOS["summary-request"]

    def rides(provider: Provider, room: int | None) -> bool:
        optimiser = Optimiser(provider, num_context_tokens=room)
        optimiser.arrange(first, "chat")
        return any(change.name == "summary-request" for change in optimiser.arrange(asked, "chat").changes)

    assert rides(LOCAL, ROOM)
    assert not rides(OPENAI, ROOM), "reading ten thousand characters is dearer than writing one thousand"
    assert not rides(LOCAL, 500)
    assert not rides(LOCAL, None), "nobody knows how much room there is"


@pytest.mark.parametrize(("name", "numbers"), [("opencode-compact", [8, 15, 22, 29, 36]), ("qwen", [])])
def test_recorded_summary_requests_ride_where_reuse_costs_nothing(name: str, numbers: list[int]):
    rode = [
        recorded.number
        for recorded, arranged, _ in arranged_all(Optimiser(LOCAL, num_context_tokens=ROOM), requests_of(name))
        if any(change.name == "summary-request" for change in arranged.changes)
    ]
    assert rode == numbers


# Room


def test_outputs_are_kept_only_while_they_fit():
    first, then = SCENARIOS["tool-output"]
    size = len(OUTPUT) // 4 + 100

    def kept(provider: Provider, num_context_tokens: int | None, model: str = "") -> bool:
        optimiser = Optimiser(provider, num_context_tokens=num_context_tokens, without=["cache-key"])
        optimiser.arrange({**first, "model": model}, "chat")
        body = {**then, "model": model}
        return optimiser.arrange(body, "chat").body is not body

    assert kept(LOCAL, 10 * size) and not kept(LOCAL, size // 4)
    assert kept(OPENAI, None, "gpt-5.1"), "its context is known"
    assert not kept(OPENAI, None, "gpt-of-tomorrow")


def test_what_was_given_up_stays_given_up():
    first, then = SCENARIOS["tool-output"]
    optimiser = Optimiser(LOCAL, num_context_tokens=len(OUTPUT))
    optimiser.arrange(first, "chat")
    long = {**then, "messages": [*then["messages"], assistant("Done."), user("And this? " + "x" * 3 * len(OUTPUT))]}
    assert optimiser.arrange(long, "chat").body is long
    assert optimiser.arrange(then, "chat").body is then


def test_the_latest_conversations_are_remembered():
    optimiser = Optimiser(LOCAL)
    for number in range(100):
        optimiser.arrange(chat(user(f"Task {number}")), "chat")
    assert repr(optimiser) == "Optimiser(kvstet, 64 conversations, without=[])"


def test_many_threads_get_what_one_gets():
    requests = [recorded for name in ("pi", "continue") for recorded in requests_of(name)[:8]]

    def played(optimiser: Optimiser, owner: str) -> list[str]:
        return [written(arranged.body) for _, arranged, _ in arranged_all(optimiser, requests, owner=owner)]

    shared = Optimiser(OPENAI, without=["cache-key"])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(partial(played, shared), "abcd"))
    assert all(each == played(Optimiser(OPENAI, without=["cache-key"]), "a") for each in found)


def test_few_long_conversations_are_remembered(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MAX_CHARACTERS", 100_000)
    optimiser = Optimiser(ANTHROPIC)
    for number in range(20):
        for _ in range(2):
            optimiser.arrange({"messages": [user(f"{number} " + "x" * 30_000)]}, "messages")
    assert "3 conversations" in repr(optimiser)
    optimiser.arrange({"messages": [user("x" * 200_000)]}, "messages")
    optimiser.arrange({"messages": [user("short")]}, "messages")
    assert "1 conversations" in repr(optimiser)
