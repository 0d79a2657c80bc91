"""What the report says of runs: pairs, medians, totals, losses, bars."""

from __future__ import annotations

import pytest

from kvstet.bench.report import wording
from kvstet.bench.report.comparison import compare, total
from kvstet.bench.report.headline import facts, sentence
from kvstet.bench.report.losses import losses
from kvstet.bench.report.measures import Better, Quantity, measured, quantity_of
from kvstet.bench.report.spread import Spread, paired_ratio
from kvstet.bench.report.strips import Segment, middle_repetition, strips
from kvstet.bench.results import Kind, Machine, Model, Results, Scenario, Server
from kvstet.replay.results import Asked, Run

A, B = "kvstet", "other"


def results(*scenarios: Scenario, servers: tuple[str, ...] = (A, B)) -> Results:
    return Results(
        began_wall=0,
        seconds=1,
        command="kvstet bench",
        seed=0,
        is_quick=True,
        machine=Machine(processor="", num_cores=1, ram_bytes=1, system="", python=""),
        model=Model(name="toy", size_bytes=1, context_length=512),
        servers=[Server(name=name, version="", command="") for name in servers],
        scenarios=list(scenarios),
    )


def scenario(*runs: Run, name: str = "append", kind: Kind = "session") -> Scenario:
    return Scenario(name=name, title=name, about="", kind=kind, runs=list(runs))


def run(server: str, repetition: int, *requests: tuple[int, int], seconds: float | None = 1.0) -> Run:
    """Each request: tokens of its prompt, and computed ones; the bound is 10."""
    asked = [
        Asked(
            label=f"turn {number}",
            num_prompt_tokens=prompt,
            num_reused_tokens=prompt - computed,
            num_computed_tokens=computed,
            num_bound_tokens=10,
            first_token_seconds=seconds,
        )
        for number, (prompt, computed) in enumerate(requests)
    ]
    return Run(server=server, repetition=repetition, asked=asked)


def test_ratios_are_made_within_pairs() -> None:
    first, second = (run(A, 0, (100, 10)), run(A, 1, (100, 20))), (run(B, 0, (100, 40)), run(B, 1, (100, 20)))
    (compared,) = compare(results(scenario(*first, *second)))
    mine, theirs = compared.scores
    assert mine.computed == Spread((10, 20))
    assert mine.times_computed is None
    assert theirs.times_computed == Spread((4.0, 1.0))
    assert theirs.times_bound == Spread((4.0, 2.0))


def test_a_repetition_that_one_server_lacks_is_no_pair() -> None:
    assert paired_ratio({0: 6.0, 1: 5.0, 2: 8.0}, {0: 2.0, 2: 0.0}) == Spread((3.0,))
    assert paired_ratio({0: 6.0}, {1: 2.0}) is None


def test_the_time_to_first_token_is_the_mean_of_a_session() -> None:
    session = run(A, 0, (100, 10), (100, 10))
    session.asked[1].first_token_seconds = 3.0
    (compared,) = compare(results(scenario(session)))
    assert compared.scores[0].first_token == Spread((2.0,))


@pytest.mark.parametrize("broken", ["failure", "error"])
def test_a_run_that_failed_is_not_compared(broken: str) -> None:
    bad = run(B, 0, (100, 1), (100, 1))
    if broken == "failure":
        bad.failure = "It died."
    else:
        bad.asked[1] = Asked(label="turn 1", error="It refused.")
    (compared,) = compare(results(scenario(run(A, 0, (100, 10), (100, 10)), bad)))
    assert compared.scores[1].computed is None
    assert compared.scores[1].times_computed is None


def test_requests_on_the_way_to_a_rate_or_to_memory_are_no_session() -> None:
    assert compare(results(scenario(run(A, 0, (100, 10)), kind="memory"))) == []


def test_totals_are_of_the_scenarios_that_every_server_has_numbers_of() -> None:
    both = scenario(run(A, 0, (100, 10)), run(A, 1, (300, 30)), run(A, 2, (200, 15)), run(B, 0, (100, 90)), name="both")
    alone = scenario(run(A, 0, (1_000, 1_000)), name="alone")
    found = results(both, alone)
    totals = total(found, compare(found))
    assert totals.scenarios == ["both"] and totals.left_out == ["alone"]
    assert [each.num_computed_tokens for each in totals.of] == [15, 90]
    assert totals.of[0].num_prompt_tokens == 200
    assert sentence(totals) == "kvstet computed 15 of 200 prompt tokens, other 90"


def test_a_server_that_never_tells_is_not_waited_for() -> None:
    silent = Run(server=B, asked=[Asked(label="turn 0", first_token_seconds=1.0)])
    found = results(scenario(run(A, 0, (100, 10)), silent))
    totals = total(found, compare(found))
    assert [each.server for each in totals.of] == [A]
    assert sentence(totals) == "kvstet computed 10 of 100 prompt tokens"


def test_the_mean_wait_of_all_counts_every_request_once() -> None:
    short, long = run(A, 0, (100, 10), seconds=1.0), run(A, 0, *[(100, 10)] * 3, seconds=5.0)
    found = results(scenario(short), scenario(long, name="long"))
    assert total(found, compare(found)).of[0].first_token_seconds == pytest.approx(4.0)


def test_facts_are_told_whichever_way_they_turned_out() -> None:
    found = results(scenario(run(A, 0, (100, 20), seconds=2.0), run(B, 0, (100, 10), seconds=1.0)))
    compared = compare(found)
    numbers = [(fact.number.split()[0], fact.says) for fact in facts(total(found, compared), compared)]
    assert [number for number, _ in numbers] == ["2.00", "0.50", "0.50"]
    assert "kvstet took 2.00 s instead of 1.00 s" in numbers[2][1]


def test_losses_are_found_in_tokens_times_rates_and_bytes() -> None:
    session = scenario(run(A, 0, (100, 20), seconds=2.0), run(B, 0, (100, 10), seconds=1.0))
    rate = scenario(kind="rate", name="decode")
    rate.runs = [Run(server=A, values={"tokens_per_second": 5.0}), Run(server=B, values={"tokens_per_second": 9.0})]
    memory = scenario(kind="memory", name="memory")
    memory.runs = [Run(server=A, values={"peak_bytes": 9.0}), Run(server=B, values={"peak_bytes": 5.0})]
    found = results(session, rate, memory)
    told = losses(compare(found), measured(found))
    assert [(loss.scenario, loss.mine, loss.theirs) for loss in told] == [
        ("append", "20", "10"),
        ("append", "2.00 s", "1.00 s"),
        ("decode", "5 tokens/s", "9 tokens/s"),
        ("memory", "9 bytes", "5 bytes"),
    ]
    for each in (session, rate, memory):
        for one in each.runs:
            one.server = B if one.server == A else A
    assert losses(compare(found), measured(found)) == []


def test_a_loss_of_which_some_pair_was_otherwise_is_within_the_spread() -> None:
    runs = [run(A, n, (100, 20)) for n in range(3)] + [run(B, n, (100, c)) for n, c in enumerate((10, 12, 24))]
    (loss,) = losses(compare(results(scenario(*runs))), [])
    assert loss.is_within_spread and not loss.is_slight


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("tokens_per_second", Quantity("", "tokens/s", Better.MORE)),
        ("8_streams_tokens_per_second", Quantity("8 streams", "tokens/s", Better.MORE)),
        ("4096_token_prompt_tokens_per_second", Quantity("4096 token prompt", "tokens/s", Better.MORE)),
        ("peak_bytes", Quantity("peak", "bytes", Better.LESS)),
        ("bytes_per_cached_token", Quantity("per cached token", "bytes", Better.LESS)),
        ("start_seconds", Quantity("start", "seconds", Better.LESS)),
        ("num_nodes", Quantity("nodes", "", Better.NEITHER)),
    ],
)
def test_names_of_values_tell_their_unit(name: str, quantity: Quantity) -> None:
    assert quantity_of(name) == quantity


def test_the_strip_is_of_the_pair_in_the_middle() -> None:
    runs = [run(A, n, (100, computed)) for n, computed in enumerate((30, 10, 20, 90))]
    assert middle_repetition(scenario(*runs), A) == 2
    assert middle_repetition(scenario(Run(server=A, repetition=3, asked=[Asked(label="turn")])), A) == 3
    assert middle_repetition(scenario(Run(server=A)), A) is None


def test_bars_have_one_scale_and_parts_from_below() -> None:
    mine, theirs = run(A, 0, (100, 20), (200, 30)), run(B, 0, (100, 100))
    mine.asked[1].num_reused_tokens, mine.asked[1].num_loaded_tokens = 70, 100
    (strip,) = strips(results(scenario(mine, theirs)))
    first, second = strip.columns
    assert strip.max_tokens == 200
    assert [bar and bar.segments for bar in first.bars] == [
        [Segment("reused", 40.0), Segment("computed", 10.0)],
        [Segment("computed", 50.0)],
    ]
    assert second.bars[0] is not None
    assert second.bars[0].segments == [Segment("reused", 35.0), Segment("loaded", 50.0), Segment("computed", 15.0)]
    assert second.bars[0].bound_percent == 95.0
    assert second.bars[1] is None, "the other server did not get as far"


def test_what_nobody_accounts_for_is_drawn_as_unknown() -> None:
    asked = Asked(label="turn", num_prompt_tokens=100, num_computed_tokens=30)
    (strip,) = strips(results(scenario(Run(server=A, asked=[asked]))))
    (bar, _) = strip.columns[0].bars
    assert bar is not None
    assert bar.segments == [Segment("unknown", 70.0), Segment("computed", 30.0)]
    assert bar.bound_percent is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (wording.count(12_345.4), "12,345"),
        (wording.seconds(0.0421), "42 ms"),
        (wording.seconds(0.0996), "0.10 s"),
        (wording.seconds(9.996), "10.0 s"),
        (wording.seconds(1_234.5), "1,234 s"),
        (wording.duration(1_830), "30 min 30 s"),
        (wording.size(900), "900 bytes"),
        (wording.size(92 << 20), "92.0 MiB"),
        (wording.size(16 << 30), "16.0 GiB"),
        (wording.share(1, 40), "2.5%"),
        (wording.share(1, 0), wording.UNKNOWN),
        (wording.times(1.596), "1.60"),
        (wording.times(99.97), "100"),
        (wording.in_unit(114.4, "tokens/s"), "114 tokens/s"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_are_told_as_people_read_them(words: str, text: str) -> None:
    assert words == text
