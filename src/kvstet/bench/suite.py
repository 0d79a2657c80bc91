"""The published suite: every scenario as a line of data, in the order in which a round goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from kvstet.bench import results, sessions
from kvstet.bench.software import Limits
from kvstet.bench.stage import Stage
from kvstet.bench.steps import Step
from kvstet.errors import InvalidRequest

FEW_CELLS = Limits(context_length=512, cache_ram_mib=2)
"""Three sessions of 230 tokens, and then of 330, have no room in this: of a model with 20 kB a token, 2 MiB are 100."""


@dataclass(frozen=True, slots=True)
class Session:
    """Requests, each of which is measured."""

    steps: Callable[[Stage], Sequence[Step]]


@dataclass(frozen=True, slots=True)
class Decoding:
    """So many replies at a time, and how fast all of them together get longer."""

    nums_streams: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prompts that nobody has seen, of the lengths that there is time for, and how fast they are computed."""


@dataclass(frozen=True, slots=True)
class Resident:
    """What servers take of the memory, and how much of that for each token that they have cached."""

    steps: Callable[[Stage], Sequence[Step]]


Work = Session | Decoding | Prefill | Resident


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    about: str
    work: Work
    limits: Limits | None = None
    """None: as much room as is usual."""
    max_pairs: int | None = None
    """Of the long ones, so that a run comes to its end."""
    kind: results.Kind = "session"
    forgets: bool = False
    """Whether servers have lost afterwards what they had in memory."""


SUITE: tuple[Scenario, ...] = (
    Scenario(
        "memory",
        "Memory",
        "Resident memory before the first conversation, of each cached token, at the highest and at the end.",
        Resident(sessions.resident),
        max_pairs=1,
        kind="memory",
    ),
    Scenario(
        "append",
        "A session that only grows",
        "The model calls tools, and each result is appended: the least that any cache of prefixes does.",
        Session(sessions.append),
    ),
    Scenario(
        "strip-reasoning",
        "Reasoning stripped",
        "With the next turn, the client takes the reasoning out of all earlier replies, as many clients do.",
        Session(sessions.strip_reasoning),
    ),
    Scenario(
        "prune",
        "An old result pruned",
        "The client replaces an old tool result by a stub, to save room; what follows it stays the same.",
        Session(sessions.prune),
    ),
    Scenario(
        "insert",
        "A message inserted",
        "A reminder is put in the middle of what was sent before.",
        Session(sessions.insert),
    ),
    Scenario(
        "remove",
        "A message removed",
        "An old call and its result are taken out of what was sent before.",
        Session(sessions.remove),
    ),
    Scenario(
        "clock",
        "A clock in the system prompt",
        "The system prompt ends with the time, which is another one with each request.",
        Session(sessions.clock),
    ),
    Scenario(
        "tool-reorder",
        "Tools in another order",
        "The same tools come in another order, as they do from clients that keep them in a set.",
        Session(sessions.tool_reorder),
    ),
    Scenario(
        "arguments",
        "Arguments spelt otherwise",
        "The client has parsed the arguments of earlier calls, and writes them without blanks and in another order.",
        Session(sessions.arguments),
    ),
    Scenario(
        "side-requests",
        "Side requests in between",
        "Between the turns, the client asks for a title with another system prompt.",
        Session(sessions.side_requests),
    ),
    Scenario(
        "fan-out",
        "Eight agents from one history",
        "Eight requests are sent at once that begin with the same history, which nobody has computed yet.",
        Session(sessions.fan_out),
    ),
    Scenario(
        "rewind",
        "Rewind and branch",
        "The user goes back and on another way, and then goes on with the first one.",
        Session(sessions.rewind),
    ),
    Scenario(
        "compaction",
        "Compaction",
        "The conversation is summarised, and a new one begins with the same system prompt and the summary.",
        Session(sessions.compaction),
    ),
    Scenario(
        "decode",
        "Decoding",
        "One, four and eight replies at a time, greedy: tokens of all of them per second.",
        Decoding((1, 4, 8)),
        kind="rate",
    ),
    Scenario(
        "prefill",
        "New prompts",
        "Prompts that nobody has seen, without cache, to the first token.",
        Prefill(),
        kind="rate",
    ),
    Scenario(
        "growth",
        "A conversation that gets long",
        "One conversation grows by equal steps: what the same step costs behind a short and behind a long history.",
        Session(sessions.growth),
        max_pairs=2,
        kind="growth",
    ),
    Scenario(
        "restart",
        "Killed and started again",
        "The server is killed with SIGKILL three seconds after a reply, started, and sent the next turn.",
        Session(sessions.restart),
        forgets=True,
    ),
    Scenario(
        "interleaved",
        "More sessions than fit",
        "Three sessions in turn that together have more tokens than there is room for, live and in the cache's RAM.",
        Session(sessions.interleaved),
        limits=FEW_CELLS,
        forgets=True,
    ),
)


def chosen(names: Iterable[str]) -> tuple[Scenario, ...]:
    """Those named, in the suite's order; none named: all. InvalidRequest: nothing is called so."""
    wanted, known = set(names), [scenario.name for scenario in SUITE]
    for name in wanted - set(known):
        raise InvalidRequest(f"There is no scenario {name!r}; there are {', '.join(known)}.")
    return tuple(scenario for scenario in SUITE if scenario.name in wanted) if wanted else SUITE
