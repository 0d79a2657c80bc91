"""Results of a bench that nobody ran: every scenario of the suite, two servers, five pairs, from a seed.

Prompts are numbers of tokens and the places at which they leave what was sent before; the first server finds any prefix
again, the other one only what its last request left.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from kvstet.bench.results import DriftPoint, Kind, Machine, Model, Results, Scenario, Server
from kvstet.replay.results import Asked, Run

KVSTET, PEER = "kvstet", "llama.cpp's server"
NUM_PAIRS = 5
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """A request: how long its prompt is, and how much of it stood in any prompt before, and in the last one."""

    label: str
    num_tokens: int
    num_known: int
    num_in_last: int


Steps = Callable[[random.Random], list[Step]]


def full_results(seed: int = 7, num_pairs: int = NUM_PAIRS) -> Results:
    """All of it, as a full run writes it."""
    chance = random.Random(seed)
    sessions = [
        _session(chance, num_pairs, name, title, about, kind, steps) for name, title, about, kind, steps in SUITE
    ]
    measured = [_decode(chance, num_pairs), _prefill(chance, num_pairs), _memory(chance)]
    return Results(
        began_wall=1_795_000_000.0,
        seconds=1_830.0,
        command="kvstet bench --pairs 5 --seed 7",
        seed=seed,
        is_quick=False,
        machine=Machine(
            processor="Intel(R) Xeon(R) Processor @ 2.70GHz",
            num_cores=2,
            ram_bytes=16 << 30,
            system="Linux 6.1.0 x86_64",
            python="3.11.2",
        ),
        model=Model(
            name="SmolLM2-135M-Instruct Q4_1", size_bytes=97_000_000, architecture="llama", context_length=8192
        ),
        servers=[
            Server(
                name=KVSTET,
                version="0.1.0, llama-cpp-python 0.3.36",
                command="kvstet serve smollm2.gguf --ctx-size 8192 --slots 8 --threads 2 --chat-template chatml-tools",
            ),
            Server(
                name=PEER,
                version="xllamacpp 2026.10",
                command="llama-server -m smollm2.gguf -c 65536 -np 8 -t 2 --jinja --cache-ram 2048",
            ),
        ],
        scenarios=[*sessions, *measured],
        drift=_drift(),
        noise_divergence=2.4e-6,
    )


def _session(
    chance: random.Random, num_pairs: int, name: str, title: str, about: str, kind: Kind, steps: Steps
) -> Scenario:
    runs: list[Run] = []
    for repetition in range(num_pairs):
        session = steps(chance)
        runs.append(Run(server=KVSTET, repetition=repetition, asked=_asked(chance, session, is_tree=True, name=name)))
        runs.append(Run(server=PEER, repetition=repetition, asked=_asked(chance, session, is_tree=False, name=name)))
    return Scenario(name=name, title=title, about=about, kind=kind, runs=runs)


def _asked(chance: random.Random, steps: list[Step], *, is_tree: bool, name: str) -> list[Asked]:
    asked: list[Asked] = []
    at_seconds = 0.0
    for number, step in enumerate(steps):
        reused = step.num_known if is_tree else step.num_in_last
        loaded = reused if is_tree and name in ("interleaved", "restart") and number % 3 == 0 else 0
        computed = step.num_tokens - reused + min(reused, chance.randint(0, 9) if is_tree else 1)
        loaded = min(loaded, step.num_tokens - computed)
        first = 0.02 + computed / chance.uniform(380, 440) * (1 if is_tree else 2.2) + step.num_tokens * 2e-6
        asked.append(
            Asked(
                label=step.label,
                at_seconds=round(at_seconds, 3),
                num_prompt_tokens=step.num_tokens,
                num_reused_tokens=step.num_tokens - computed - loaded,
                num_loaded_tokens=loaded if is_tree else None,
                num_shifted_tokens=0 if is_tree else None,
                num_computed_tokens=computed,
                num_bound_tokens=step.num_tokens - step.num_known,
                first_token_seconds=round(first, 4),
                seconds=round(first + 0.01, 4),
                verdict=_verdict(step, computed) if is_tree else None,
            )
        )
        at_seconds += first + 0.3
    return asked


def _verdict(step: Step, computed: int) -> str:
    return (
        f"Computed {computed:,} of {step.num_tokens:,} tokens: the prompt left the cached path in message 3 (tool),"
        f" 11 tokens in; messages 0 to 2 were reused."
    )


def _append(chance: random.Random) -> list[Step]:
    return _growing(chance, 14, lambda number, length: (length, length))


def _changed(at: float, every: int, share_known: float = 1.0) -> Steps:
    """Every few requests, the prompt leaves what was sent at a part of its length."""

    def steps(chance: random.Random) -> list[Step]:
        def known(number: int, length: int) -> tuple[int, int]:
            place = int(length * at) if number % every == 0 and number else length
            return max(place, int(length * (share_known if number % 2 else 0))), place

        return _growing(chance, 14, known)

    return steps


def _growing(chance: random.Random, num: int, known: Callable[[int, int], tuple[int, int]]) -> list[Step]:
    steps: list[Step] = []
    length = 0
    for number in range(num):
        shared, in_last = known(number, length)
        length += chance.randint(900, 1_200) if number == 0 else chance.randint(60, 520)
        steps.append(Step(f"turn {number + 1}", length, min(shared, length), min(in_last, length)))
    return steps


def _branches(num: int, num_turns: int, share_in_last: float) -> Steps:
    """Sessions side by side: the tree knows all of them, the other server what the last one shares."""

    def steps(chance: random.Random) -> list[Step]:
        shared = chance.randint(900, 1_100)
        lengths = [0] * num
        made: list[Step] = []
        for turn in range(num_turns):
            for session in range(num):
                known = max(lengths[session], shared if made else 0)
                lengths[session] = max(lengths[session], shared) + chance.randint(80, 400)
                in_last = min(known, int(shared * share_in_last)) if made else 0
                made.append(Step(f"session {session + 1}, turn {turn + 1}", lengths[session], known, in_last))
        return made

    return steps


def _longer(chance: random.Random) -> list[Step]:
    """By equal steps; the other server computes a part of the history again with each."""
    lengths = range(1_000, 100_001, 6_600)
    known = [0, *lengths[:-1]]
    return [
        Step(f"{length:,} tokens", length, before, before - chance.randint(0, before // 12))
        for length, before in zip(lengths, known, strict=True)
    ]


SUITE: list[tuple[str, str, str, Kind, Steps]] = [
    ("append", "Append", "A session of tool calls that only grows.", "session", _append),
    ("strip-reasoning", "Strip reasoning", "The template drops old reasoning at each turn of the user.", "session",
     _changed(0.7, 3, 1.0)),
    ("prune", "Prune", "Old outputs of tools are cleared.", "session", _changed(0.3, 5)),
    ("insert", "Insert", "A message is put into the middle.", "session", _changed(0.5, 4)),
    ("remove", "Remove", "A message is taken out of the middle.", "session", _changed(0.5, 4)),
    ("clock", "Clock in the system prompt", "The time of day stands near the beginning.", "session", _changed(0.04, 1)),
    ("tool-reorder", "Tools in another order", "The same tools are sent as they come.", "session", _changed(0.1, 2)),
    ("arguments", "Arguments written anew", "Keys of a call's arguments change their order.", "session",
     _changed(0.6, 3)),
    ("side-requests", "Side requests", "A title is asked for between turns.", "session", _branches(2, 7, 0.2)),
    ("fan-out", "Fan-out", "Eight agents start from one history.", "session", _branches(8, 2, 0.9)),
    ("interleaved", "Interleaved", "More sessions than the RAM for state holds.", "session", _branches(6, 6, 0.6)),
    ("rewind", "Rewind and branch", "The user goes back, and on in another direction.", "session",
     _changed(0.4, 3, 1.0)),
    ("compaction", "Compaction", "The history is summed up, and goes on behind the summary.", "session",
     _changed(0.15, 7)),
    ("restart", "Restart", "kill -9, start, and send the same again.", "session", _changed(0.0, 6, 1.0)),
    ("growth", "Growth", "One conversation, from a thousand tokens to a hundred thousand.", "growth", _longer),
]  # fmt: skip


def _decode(chance: random.Random, num_pairs: int) -> Scenario:
    runs = [
        Run(
            server=server,
            repetition=repetition,
            values={
                f"{streams}_tokens_per_second": round(rate * chance.uniform(0.85, 1.1), 1)
                for streams, rate in zip(("1_stream", "4_streams", "8_streams"), rates, strict=True)
            },
        )
        for repetition in range(num_pairs)
        for server, rates in ((KVSTET, (114, 164, 96)), (PEER, (72, 99, 104)))
    ]
    return Scenario(name="decode", title="Decode", about="Tokens per second of all streams.", kind="rate", runs=runs)


def _prefill(chance: random.Random, num_pairs: int) -> Scenario:
    runs = [
        Run(
            server=server,
            repetition=repetition,
            values={"4096_token_prompt_tokens_per_second": round(rate * chance.uniform(0.9, 1.1), 1)},
        )
        for repetition in range(num_pairs)
        for server, rate in ((KVSTET, 431), (PEER, 114))
    ]
    return Scenario(name="prefill", title="Prefill", about="A prompt of 5,000 words, cold.", kind="rate", runs=runs)


def _memory(chance: random.Random) -> Scenario:
    runs = [
        Run(
            server=server,
            values={
                "idle_bytes": idle * MIB,
                "peak_bytes": peak * MIB + chance.randint(0, MIB),
                "cached_token_bytes": each,
            },
        )
        for server, idle, peak, each in ((KVSTET, 412, 2_730, 23_040.0), (PEER, 301, 1_190, 23_552.0))
    ]
    return Scenario(name="memory", title="Memory", about="The server's processes together.", kind="memory", runs=runs)


def _drift() -> list[DriftPoint]:
    return [
        DriftPoint(edit=edit, num_repaired_tokens=repaired, mean_divergence=first / (1 + repaired / 18))
        for edit, first in (("insert", 0.021), ("remove", 0.034), ("replace", 0.012))
        for repaired in (0, 16, 64, 256, 1024)
    ]
