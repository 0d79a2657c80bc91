"""The scenarios that are conversations: what a client sends, request by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from kvstet.bench.chats import Chat, assistant, respelt, saying, system, user, without_reasoning
from kvstet.bench.stage import NUM_FRAME_TOKENS, NUM_OPENING_TOKENS, Stage
from kvstet.bench.steps import Ask, Restart, Step, Together

NUM_AGENTS = 8
NUM_SESSIONS = 3
NUM_SUMMARY_TOKENS = 60
"""Where the rest is as short as can be."""
GROWTH_START_TOKENS = 1024
GROWTH_STEP_TOKENS = 512
MAX_GROWTH_STEPS = 24
STUB = "[Old tool result content cleared]"
REMINDER = "<system-reminder>The files were changed by somebody else since you read them.</system-reminder>"
SUMMARISE = "Summarise this conversation, so that the work can be continued from the summary alone."


def append(stage: Stage) -> Sequence[Step]:
    first = stage.opening()
    second = stage.step(first)
    third = stage.step(second)
    return [first.ask("task"), second.ask("result 1"), third.ask("result 2")]


def strip_reasoning(stage: Stage) -> Sequence[Step]:
    first = stage.opening()
    second = stage.step(first, stage.reasoning())
    third = stage.step(second, stage.reasoning())
    stripped = third.adding(assistant("It is done."), user("Now write a test.")).changing(
        third.where("assistant"), without_reasoning
    )
    return [first.ask("task"), second.ask("result 1"), third.ask("result 2"), stripped.ask("reasoning stripped")]


def prune(stage: Stage) -> Sequence[Step]:
    chat = stage.step(stage.step(stage.opening()))
    pruned = stage.step(chat.changing(chat.where("tool")[:1], saying(STUB)))
    return [chat.ask("two results"), pruned.ask("the first one pruned")]


def insert(stage: Stage) -> Sequence[Step]:
    chat = stage.step(stage.step(stage.opening()))
    inserted = stage.step(chat.inserting(2, user(REMINDER)))
    return [chat.ask("two results"), inserted.ask("a reminder before them")]


def remove(stage: Stage) -> Sequence[Step]:
    chat = stage.step(stage.step(stage.opening()))
    removed = stage.step(chat.without((2, 3)))
    return [chat.ask("two results"), removed.ask("the first one removed")]


def clock(stage: Stage) -> Sequence[Step]:
    first = stage.opening()
    second = stage.step(first)
    return [_at(first, 4).ask("10:04"), _at(second, 5).ask("10:05")]


def _at(chat: Chat, minute: int) -> Chat:
    """As it is sent by a client that tells the time in its system prompt."""
    text = chat.messages[0]["content"]
    return chat.changing([0], saying(f"{text}\nCurrent time: 2026-03-02 10:{minute:02d}"))


def tool_reorder(stage: Stage) -> Sequence[Step]:
    first = stage.opening()
    second = stage.step(first)
    return [first.ask("task"), second.with_tools(reversed(second.tools)).ask("tools in another order")]


def arguments(stage: Stage) -> Sequence[Step]:
    chat = stage.step(stage.step(stage.opening()))
    spelt = stage.step(chat.changing(chat.where("assistant"), respelt))
    return [chat.ask("as the model wrote them"), spelt.ask("as the client writes them")]


def side_requests(stage: Stage) -> Sequence[Step]:
    first = stage.opening()
    second = stage.step(first)
    third = stage.step(second)
    head = system(f"Request {stage.text.word()}. Generate a short title for this conversation.")
    titles = [
        Chat((head, user(f"It ends with: {chat.messages[-1]['content']}"))).ask("title") for chat in (first, second)
    ]
    return [first.ask("task"), titles[0], second.ask("result 1"), titles[1], third.ask("result 2")]


def fan_out(stage: Stage) -> Sequence[Step]:
    chat = stage.step(stage.opening(tools=()))
    agents = (
        chat.adding(assistant("Let us look."), user(f"You are agent {n}. {stage.task()['content']}"))
        for n in range(NUM_AGENTS)
    )
    return [Together(tuple(agent.ask(f"agent {number + 1}") for number, agent in enumerate(agents)))]


def interleaved(stage: Stage) -> Sequence[Step]:
    # Each must have room alone.
    small = replace(stage, size=1)
    chats = [small.step(small.opening(tools=())) for _ in range(NUM_SESSIONS)]
    again = [small.step(chat, num_tokens=30) for chat in chats]
    turns = [
        (f"session {n + 1}, turn {turn}", chat)
        for turn, side in ((1, chats), (2, again))
        for n, chat in enumerate(side)
    ]
    return [chat.ask(label) for label, chat in turns]


def rewind(stage: Stage) -> Sequence[Step]:
    first = stage.opening()
    second = stage.step(first)
    branch = first.adding(assistant("I know it already."), user("Then do it."))
    back = stage.step(second)
    return [first.ask("task"), second.ask("result"), branch.ask("rewound"), back.ask("the first branch again")]


def compaction(stage: Stage) -> Sequence[Step]:
    chat = stage.step(stage.opening())
    asked = chat.adding(assistant("It is done."), user(SUMMARISE))
    summary = user(f"This is a summary of the conversation so far:\n{stage.text.code(NUM_SUMMARY_TOKENS * stage.size)}")
    compacted = replace(chat, messages=(chat.messages[0], summary, stage.task()))
    return [chat.ask("result"), asked.ask("summary"), compacted.ask("compacted")]


def restart(stage: Stage) -> Sequence[Step]:
    chat = stage.step(stage.opening())
    return [chat.ask("before"), Restart(), stage.step(chat, num_tokens=30).ask("after kill -9")]


def growth(stage: Stage) -> Sequence[Ask]:
    start = min(GROWTH_START_TOKENS, stage.max_growth_tokens // 2)
    num_tokens = max(GROWTH_STEP_TOKENS, (stage.max_growth_tokens - start) // MAX_GROWTH_STEPS)
    chat = stage.step(stage.opening(), num_tokens=start - NUM_OPENING_TOKENS - NUM_FRAME_TOKENS)
    asks = [chat.ask(f"{start:,} tokens")]
    for length in range(start + num_tokens, stage.max_growth_tokens + 1, num_tokens):
        chat = stage.step(chat, num_tokens=num_tokens - NUM_FRAME_TOKENS)
        asks.append(chat.ask(f"{length:,} tokens"))
    return asks


def resident(stage: Stage) -> Sequence[Ask]:
    """Conversations beside each other, and each of them once more: what is cached of them then is in memory."""
    chats = [stage.step(stage.opening(tools=())) for _ in range(NUM_SESSIONS)]
    again = [chat.adding(assistant("It is done."), user("Go on.")) for chat in chats]
    return [
        chat.ask(label)
        for label, chat in chain(
            ((f"session {n + 1}", chat) for n, chat in enumerate(chats)),
            ((f"session {n + 1} again", chat) for n, chat in enumerate(again)),
        )
    ]
