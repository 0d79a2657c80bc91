"""The loop on a scripted model."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvstet.agent.asking import Asker, Patience
from kvstet.agent.confirmation import Yes
from kvstet.agent.events import Answered, Called, Compacted, Event, Replying, Retrying, Stepped
from kvstet.agent.instructions import SYSTEM
from kvstet.agent.loop import INTERRUPTED, Agent
from kvstet.agent.meter import Meter, Step
from kvstet.agent.model import Reply, ScriptedModel, saying
from kvstet.agent.toolbox import Toolbox, workspace_tools
from kvstet.agent.tools.tool import Plan, Schema
from kvstet.agent.tools.workspace import Workspace
from kvstet.context.conversation import Context
from kvstet.context.writing.budget import Budget
from kvstet.context.writing.compaction import Compaction, View
from kvstet.context.writing.payback import Payback
from kvstet.dialects.reply import Failure, ReplyBegin, ReplyEnd, TextDelta
from kvstet.dialects.request import Request
from kvstet.errors import ModelFailed, ToolFailed
from kvstet.money.bill import bill_of
from kvstet.providers.prices import Price
from kvstet.types import Usage


class Echo:
    """A tool that says what it was told, or what it was given to do."""

    only_reads = True

    def __init__(self, name: str = "echo", answer: str | None = None, error: str | None = None) -> None:
        self.name = name
        self._answer = answer
        self._error = error
        self.calls: list[str] = []

    @property
    def schema(self) -> Schema:
        parameters = {"type": "object", "properties": {"text": {"type": "string"}}}
        return {
            "type": "function",
            "function": {"name": self.name, "description": f"Says {self.name}.", "parameters": parameters},
        }

    async def plan(self, arguments: str) -> Plan:
        async def run() -> str:
            self.calls.append(arguments)
            if self._error:
                raise ToolFailed(self._error)
            return self._answer if self._answer is not None else arguments

        return Plan(run)


class Changing:
    """A source of tools that come and go."""

    def __init__(self) -> None:
        self.now: list[Echo] = []

    async def tools(self) -> Sequence[Echo]:
        return self.now


def agent_of(
    replies: Sequence[Reply],
    *tools: Echo,
    source: Changing | None = None,
    budget: Budget | None = None,
    events: list[Event] | None = None,
    **more: Any,
) -> tuple[Agent, ScriptedModel, Context]:
    model = ScriptedModel(replies)
    toolbox = Toolbox(tools or [Echo()], Yes(), source=source)
    context = Context(SYSTEM, toolbox.schemas, takes_late_tools=True, budget=budget)
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    asker = Asker(model, sleep=sleep)
    watch = events.append if events is not None else (lambda _: None)
    return Agent(asker, context, toolbox, model_name="m", watch=watch, **more), model, context


def roles(request: Request) -> list[str]:
    return [message["role"] for message in request.messages]


async def test_a_turn_without_calls_is_one_request() -> None:
    agent, model, _ = agent_of([saying("Hello.")])
    outcome = await agent.run("Hi")
    assert (outcome.reason, outcome.text) == ("done", "Hello.")
    assert roles(model.requests[0]) == ["system", "user"]
    assert model.requests[0].messages[0]["content"] == SYSTEM


async def test_calls_are_answered_in_their_order_and_the_model_goes_on() -> None:
    echo = Echo()
    agent, model, _ = agent_of(
        [saying("Both.", ("a", "echo", '{"text": "1"}'), ("b", "echo", '{"text": "2"}')), saying("Done.")], echo
    )
    assert (await agent.run("Go")).text == "Done."
    assert echo.calls == ['{"text": "1"}', '{"text": "2"}']
    results = [message for message in model.requests[1].messages if message["role"] == "tool"]
    assert [(result["tool_call_id"], result["content"]) for result in results] == [
        ("a", '{"text": "1"}'),
        ("b", '{"text": "2"}'),
    ]


async def test_what_goes_wrong_in_a_tool_is_told_to_the_model() -> None:
    agent, model, _ = agent_of(
        [saying("", ("a", "echo", "{}"), ("b", "nothing", "{}")), saying("Done.")], Echo(error="It is broken.")
    )
    await agent.run("Go")
    told = [message["content"] for message in model.requests[1].messages if message["role"] == "tool"]
    assert told == ["Error: It is broken.", "Error: There is no tool 'nothing'; there are echo."]


async def test_after_so_many_steps_the_agent_stops_and_can_go_on() -> None:
    agent, model, _ = agent_of([*(saying("", (f"c{n}", "echo", "{}")) for n in range(3)), saying("Done.")], max_steps=3)
    assert (await agent.run("Go")).reason == "max_steps"
    assert len(model.requests) == 3
    assert (await agent.run("Go on")).text == "Done."
    assert roles(model.requests[3])[-2:] == ["tool", "user"]


async def test_calls_without_an_id_of_their_own_get_one() -> None:
    agent, model, _ = agent_of(
        [saying("", ("", "echo", "{}"), ("x", "echo", "{}"), ("x", "echo", "{}")), saying("Done.")]
    )
    await agent.run("Go")
    assistant = model.requests[1].messages[2]
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert ids == ["call_1_0", "x", "call_1_2"]
    results = [message["tool_call_id"] for message in model.requests[1].messages if message["role"] == "tool"]
    assert results == ids


async def test_a_reply_that_is_cut_off_or_filtered_is_named_so() -> None:
    agent, _, _ = agent_of([[TextDelta("half"), ReplyEnd("length")], [ReplyEnd("content_filter")]])
    assert (await agent.run("a")).reason == "length"
    assert (await agent.run("b")).reason == "filtered"


async def test_huge_outputs_are_cut_when_they_enter() -> None:
    agent, model, _ = agent_of([saying("", ("a", "echo", "{}")), saying("Done.")], Echo(answer="x" * 10_000_000))
    await agent.run("Go")
    result = model.requests[1].messages[-1]["content"]
    assert len(result) < 17_000
    assert "characters left out" in result


# Trouble with the model.


async def test_a_request_that_fails_for_now_is_sent_again() -> None:
    events: list[Event] = []
    agent, model, _ = agent_of(
        [ModelFailed("busy", status=429, retry_after_seconds=7), ModelFailed("gone"), saying("Here.")], events=events
    )
    assert (await agent.run("Hi")).text == "Here."
    assert [event.after_seconds for event in events if isinstance(event, Retrying)] == [7, 2]
    assert model.requests[0] == model.requests[1] == model.requests[2]


async def test_a_reply_that_breaks_off_is_not_kept_in_part() -> None:
    agent, model, context = agent_of(
        [[ReplyBegin(), TextDelta("Half a "), Failure(502, "It broke off.")], saying("Whole.")]
    )
    assert (await agent.run("Hi")).text == "Whole."
    assert context.history.messages[-1]["content"] == "Whole."
    assert len(model.requests) == 2


async def test_a_request_that_cannot_succeed_is_not_sent_again() -> None:
    agent, model, context = agent_of([ModelFailed("wrong key", status=401), saying("Hello.")])
    with pytest.raises(ModelFailed, match="wrong key"):
        await agent.run("Hi")
    assert len(model.requests) == 1
    assert (await agent.run("Again")).text == "Hello."
    assert [message["role"] for message in context.history.messages] == ["user", "user", "assistant"]


@pytest.mark.parametrize(
    ("num_failures", "error", "pause"),
    [
        (1, ModelFailed("", status=500), 1.0),
        (4, ModelFailed("", status=529), 8.0),
        (5, ModelFailed("", status=500), None),
        (1, ModelFailed("", status=429, retry_after_seconds=60.0), 60.0),
        (1, ModelFailed("", status=429, retry_after_seconds=3600.0), None),
        (1, ModelFailed("", status=400), None),
        (1, ModelFailed(""), 1.0),
    ],
)
def test_patience_has_bounds(num_failures: int, error: ModelFailed, pause: float | None) -> None:
    assert Patience().pause(num_failures, error) == pause


# Being stopped.


class Stuck(Echo):
    """Never comes to an end."""

    def __init__(self) -> None:
        super().__init__("stuck")
        self.begun = asyncio.Event()

    async def plan(self, arguments: str) -> Plan:
        async def run() -> str:
            self.begun.set()
            await asyncio.sleep(1000)
            return ""

        return Plan(run)


async def test_an_agent_that_is_stopped_in_a_call_can_go_on() -> None:
    stuck, echo = Stuck(), Echo()
    agent, model, context = agent_of(
        [saying("", ("a", "echo", "1"), ("b", "stuck", "{}"), ("c", "echo", "2")), saying("Fine.")], echo, stuck
    )
    running = asyncio.ensure_future(agent.run("Go"))
    await stuck.begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [message.get("content") for message in context.history.messages[2:]] == ["1", INTERRUPTED, INTERRUPTED]
    assert (await agent.run("Never mind")).text == "Fine."
    assert roles(model.requests[1]) == ["system", "user", "assistant", "tool", "tool", "tool", "user"]


async def test_an_agent_that_is_stopped_in_a_reply_keeps_what_was_whole() -> None:
    waiting = asyncio.Event()

    class Slow(ScriptedModel):
        async def complete(self, request: Request) -> Any:
            yield TextDelta("Half")
            waiting.set()
            await asyncio.sleep(1000)

    toolbox = Toolbox([Echo()], Yes())
    context = Context(SYSTEM, toolbox.schemas)
    agent = Agent(Slow([]), context, toolbox)
    running = asyncio.ensure_future(agent.run("Go"))
    await waiting.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [message["role"] for message in context.history.messages] == ["user"]


# What is told to who watches.


async def test_events_tell_what_happens_in_its_order() -> None:
    events: list[Event] = []
    agent, _, _ = agent_of([saying("", ("a", "echo", "{}")), saying("Done.")], events=events)
    await agent.run("Go")
    kinds = [type(event) for event in events if not isinstance(event, Replying)]
    assert kinds == [Stepped, Called, Answered, Stepped]


async def test_steps_are_counted_with_their_usage() -> None:
    usage = Usage(num_input_tokens=100, num_cache_read_tokens=80, num_output_tokens=5)
    price = Price(input=1e-6, cache_read=1e-7, cache_write=None, long_cache_write=None, output=5e-6, source="test")
    noted: list[Step] = []
    meter = Meter(lambda usage: bill_of(usage, price), noted.append)
    agent, _, _ = agent_of([saying("", ("a", "echo", "{}"), usage=usage), saying("Done.")], meter=meter)
    await agent.run("Go")
    assert [(step.number, step.bill.usage) for step in meter.steps] == [(1, usage), (2, Usage())]
    assert meter.steps[0].bill.cost == pytest.approx(20e-6 + 8e-6 + 25e-6)
    assert noted == meter.steps


# The three rules.


def is_prefix(before: Request, after: Request) -> bool:
    """Byte for byte: the request begins with all that the one before said."""
    return (
        json.dumps(after.messages[: len(before.messages)]) == json.dumps(before.messages)
        and json.dumps(after.tools) == json.dumps(before.tools)
        and (after.model, after.terms) == (before.model, before.terms)
    )


async def test_what_varies_stands_in_the_turns_own_message_and_only_when_it_is_new() -> None:
    times = iter(["Monday", "Monday", "Tuesday"])

    async def clock() -> Mapping[str, str]:
        return {"date": next(times)}

    agent, model, _ = agent_of([saying("1"), saying("2"), saying("3")], surroundings=clock)
    for task in ("one", "two", "three"):
        await agent.run(task)
    said = [message["content"] for message in model.requests[-1].messages if message["role"] == "user"]
    assert ["Monday" in text for text in said] == [True, False, False]
    assert ["Tuesday" in text for text in said] == [False, False, True]
    assert all(request.messages[0]["content"] == SYSTEM for request in model.requests)


async def test_a_tool_that_comes_is_announced_at_once_and_can_be_called() -> None:
    source, late = Changing(), Echo("late")
    arguments = json.dumps({"name": "late", "arguments": {"text": "x"}})

    def come(_: Request) -> Reply:
        source.now = [late]
        return saying("", ("a", "echo", "{}"))

    agent, model, _ = agent_of([come, saying("", ("b", "use_tool", arguments)), saying("Done.")], source=source)
    await agent.run("Go")
    assert "late" in model.requests[1].messages[-1]["content"]
    assert late.calls == ['{"text": "x"}']
    assert is_prefix(model.requests[0], model.requests[1])
    assert is_prefix(model.requests[1], model.requests[2])


async def test_no_source_can_replace_the_agents_own_tools() -> None:
    source, own = Changing(), Echo("echo", "the agent's own")
    source.now = [Echo("echo", "an impostor")]
    agent, model, _ = agent_of([saying("", ("a", "echo", "{}")), saying("Done.")], own, source=source)
    await agent.run("Go")
    assert model.requests[1].messages[-1]["content"] == "the agent's own"


async def test_a_tool_that_goes_is_announced_and_refused() -> None:
    source, guest = Changing(), Echo("guest")
    source.now = [guest]

    def go(_: Request) -> Reply:
        source.now = []
        return saying("", ("a", "echo", "{}"))

    agent, model, _ = agent_of(
        [saying("Hi."), go, saying("", ("b", "guest", "{}")), saying("Done.")], Echo(), source=source
    )
    await agent.run("Hello")
    await agent.run("Go")
    assert "guest can no longer be called" in model.requests[2].messages[-1]["content"]
    assert "There is no tool 'guest'" in model.requests[3].messages[-1]["content"]


@pytest.mark.parametrize("seed", range(12))
async def test_every_request_begins_with_the_one_before_but_after_a_compaction(seed: int) -> None:
    """Random scripts, with tools that come and go, a clock, failures and compactions."""
    random_ = random.Random(seed)
    source, events = Changing(), list[Event]()
    ticks = iter(range(10_000))

    async def clock() -> Mapping[str, str]:
        return {"time": str(next(ticks) // 2), "git status": random_.choice(["clean", "M a.py"])}

    def reply(request: Request) -> Reply:
        if "Pause here" in str(request.messages[-1]["content"]):
            return saying("A summary. " * 20)
        if random_.random() < 0.1:
            return ModelFailed("busy", status=503)
        if random_.random() < 0.3:
            source.now = [Echo(name) for name in random_.sample(["one", "two", "three"], random_.randrange(4))]
        names = [random_.choice(["echo", "one", "use_tool", "unknown"]) for _ in range(random_.randrange(4))]
        calls = [(f"{next(ticks)}", name, json.dumps({"text": "y" * random_.randrange(3000)})) for name in names]
        usage = Usage(num_input_tokens=len(str(request.messages)) // 4)
        return saying("Text. " * random_.randrange(50), *calls, usage=usage if random_.random() < 0.8 else None)

    budget = Budget(context_length=12_000, num_reserved_tokens=1_000)
    agent, model, _ = agent_of([reply] * 400, source=source, budget=budget, events=events, surroundings=clock)
    starts: list[int] = []
    for turn in range(14):
        await agent.run(f"Turn {turn}: " + "z" * random_.randrange(500))
    # A compaction stands between the requests that were sent before and after it.
    num_sent = 0
    for event in events:
        num_sent += isinstance(event, Stepped | Retrying)
        if isinstance(event, Compacted) and not event.problem:
            starts.append(num_sent)
    assert starts, "the script has to be long enough for a compaction"
    for index in range(1, len(model.requests)):
        if index not in starts:
            assert is_prefix(model.requests[index - 1], model.requests[index]), index
    for index in starts:
        before, after = model.requests[index - 1], model.requests[index]
        # The head stays even then: instructions, tools and task.
        assert json.dumps(after.tools) == json.dumps(before.tools)
        assert after.messages[:2] == before.messages[:2]


async def test_a_request_for_a_summary_rides_the_live_prefix() -> None:
    events: list[Event] = []
    long = Echo(answer="line\n" * 3000)
    replies: list[Reply] = [saying("", (f"c{n}", "echo", "{}")) for n in range(6)]

    def reply(request: Request) -> Reply:
        if "Pause here" in str(request.messages[-1]["content"]):
            return saying("What was done.")
        return replies.pop() if replies else saying("Done.")

    budget = Budget(context_length=16_000, num_reserved_tokens=2_000)
    agent, model, _ = agent_of([reply] * 50, long, budget=budget, events=events)
    await agent.run("Go")
    asked = [index for index, each in enumerate(model.requests) if "Pause here" in str(each.messages[-1]["content"])]
    assert asked
    for index in asked:
        assert is_prefix(model.requests[index - 1], model.requests[index])
    assert any(isinstance(event, Compacted) for event in events)
    assert any(isinstance(event, Replying) and event.is_summary for event in events)


def always_summarising(view: View) -> Compaction | None:
    """A summary that pays, and need not be."""
    if len(view.messages) < 3:
        return None
    paid = Payback(cost_now=0, saved_per_request=1, num_expected_requests=1)
    return Compaction(kind="summary", start=1, stop=3, num_removed_tokens=1, payback=paid, is_needed=False)


async def test_a_model_that_writes_no_summary_is_not_asked_at_every_step() -> None:
    def reply(request: Request) -> Reply:
        if "Pause here" in str(request.messages[-1]["content"]):
            return saying("", ("x", "echo", "{}"))
        return saying("", (f"c{len(request.messages)}", "echo", "{}"))

    events: list[Event] = []
    toolbox, model = Toolbox([Echo()], Yes()), ScriptedModel([reply] * 50)
    context = Context(SYSTEM, toolbox.schemas, strategies=[always_summarising])
    await Agent(model, context, toolbox, watch=events.append, max_steps=6).run("Go")
    assert len([event for event in events if isinstance(event, Compacted) and event.problem]) == 1
    assert len(model.requests) == 7
    # Calls in a summary's reply are not carried out, and are no part of the conversation.
    assert all("x" not in [message.get("tool_call_id") for message in each.messages] for each in model.requests)


async def test_the_library_takes_five_lines(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    toolbox = Toolbox(workspace_tools(workspace, {}), Yes())
    context = Context(SYSTEM, toolbox.schemas)
    model = ScriptedModel([saying("", ("a", "write", '{"path": "x", "content": "y"}')), saying("Done.")])
    assert (await Agent(model, context, toolbox).run("Write y into x.")).text == "Done."
    assert (tmp_path / "x").read_text() == "y"
