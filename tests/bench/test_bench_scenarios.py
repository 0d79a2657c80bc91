"""The scenarios of the bench: what their requests do to the conversation is what their names say."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from kvstet.bench.sessions import NUM_AGENTS
from kvstet.bench.stage import Stage
from kvstet.bench.steps import Restart, asks_of
from kvstet.bench.suite import SUITE, Resident, Scenario, Session, chosen
from kvstet.bench.text import Text
from kvstet.edits.history import History
from kvstet.edits.snapshot import snapshot_of
from kvstet.errors import InvalidRequest

SESSIONS = [scenario for scenario in SUITE if isinstance(scenario.work, Session | Resident)]
NAMES = [scenario.name for scenario in SESSIONS]


def steps_of(name: str, seed: str = "seed", max_growth_tokens: int = 4096) -> list[Any]:
    (scenario,) = chosen([name])
    assert isinstance(scenario.work, Session | Resident)
    return list(scenario.work.steps(Stage(Text(seed), max_growth_tokens)))


def bodies(name: str, seed: str = "seed") -> list[tuple[str, dict[str, Any]]]:
    return [(each.label, each.body) for step in steps_of(name, seed) for each in asks_of(step)]


def edits(name: str) -> list[list[str]]:
    """What kvstet says of each request, one after the other."""
    history, kinds = History(), []
    for _, body in bodies(name):
        place = history.note(snapshot_of(body["messages"], body.get("tools", ())))
        kinds.append([edit.kind + (f":{','.join(edit.what)}" if edit.what else "") for edit in place.edits])
    return kinds


NEW, GROWN = ["new_conversation"], []


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("append", [NEW, GROWN, GROWN]),
        ("prune", [NEW, ["result_replaced"]]),
        ("insert", [NEW, ["message_inserted"]]),
        ("remove", [NEW, ["message_dropped", "message_dropped"]]),
        ("clock", [NEW, ["system_changed:clock"]]),
        ("tool-reorder", [NEW, ["tools_reordered"]]),
        ("side-requests", [NEW, ["side_request:title"], GROWN, ["side_request:title"], GROWN]),
        ("compaction", [NEW, GROWN, ["compaction"]]),
        ("restart", [NEW, GROWN]),
        ("interleaved", [NEW, NEW, NEW, GROWN, GROWN, GROWN]),
    ],
)
def test_kvstet_finds_in_the_requests_what_the_scenario_says(name: str, told: list[list[str]]):
    assert edits(name) == told


def test_reasoning_is_stripped_from_every_reply_with_the_next_turn():
    *before, last = edits("strip-reasoning")
    assert before == [NEW, GROWN, GROWN]
    assert set(last) == {"reasoning_stripped"} and len(last) == 2


def test_arguments_are_spelt_otherwise_and_mean_the_same():
    (_, before), (_, after) = bodies("arguments")
    assert edits("arguments") == [NEW, GROWN]
    spelt = [_arguments(body, 2) + _arguments(body, 4) for body in (before, after)]
    assert spelt[0] != spelt[1] and " " in spelt[0] and " " not in spelt[1]


def _arguments(body: dict[str, Any], index: int) -> str:
    return body["messages"][index]["tool_calls"][0]["function"]["arguments"]


def test_a_rewind_goes_back_and_the_first_branch_goes_on_where_it_was():
    first, second, branch, back = (body["messages"] for _, body in bodies("rewind"))
    assert branch[: len(first)] == first and branch[len(first)] != second[len(first)]
    assert back[: len(second)] == second


def test_agents_that_fan_out_are_asked_at_once_and_share_all_but_their_task():
    (step,) = steps_of("fan-out")
    messages = [each.body["messages"] for each in asks_of(step)]
    assert len(messages) == NUM_AGENTS
    assert all(each[:-1] == messages[0][:-1] for each in messages)
    assert len({each[-1]["content"] for each in messages}) == NUM_AGENTS


def test_the_restart_stands_between_two_requests_of_one_conversation():
    assert [isinstance(step, Restart) for step in steps_of("restart")] == [False, True, False]


def test_what_grows_grows_by_equal_steps_to_what_is_wanted():
    lengths = [sum(len(m["content"]) for m in body["messages"]) for _, body in bodies("growth")]
    steps = [after - before for before, after in pairwise(lengths)]
    assert len(steps) >= 5 and max(steps) < 1.2 * min(steps)
    assert 3 * 3000 < lengths[-1] < 3 * 4100  # three characters are about a token
    assert bodies("growth")[-1][0] == "4,096 tokens"


def test_a_conversation_grows_within_a_small_context_too():
    assert len(steps_of("growth", max_growth_tokens=900)) >= 1
    assert sum(len(m["content"]) for m in steps_of("growth", max_growth_tokens=900)[-1].body["messages"]) < 3 * 900


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bodies(name: str):
    assert bodies(name) == bodies(name)


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_gives_conversations_that_share_no_beginning(name: str):
    words = [{body["messages"][0]["content"].split(".")[0] for _, body in bodies(name, seed)} for seed in "ab"]
    assert not words[0] & words[1]


@pytest.mark.parametrize("name", NAMES)
def test_every_request_of_a_scenario_has_a_label_of_its_own(name: str):
    labels = [label for label, _ in bodies(name)]
    assert len(set(labels)) >= len(labels) - (name == "side-requests")


def test_sizes_follow_the_length_of_the_models_tokens():
    assert len(Text("x", 4.0).code(1000)) == pytest.approx(4000, rel=0.1)
    assert len(Text("x", 2.0).code(1000)) == pytest.approx(2000, rel=0.1)


def test_scenarios_are_chosen_by_name_in_the_order_of_the_suite():
    assert [each.name for each in chosen(["clock", "append"])] == ["append", "clock"]
    assert chosen([]) == SUITE
    assert len({scenario.name for scenario in SUITE}) == len(SUITE)


def test_a_name_that_is_no_scenario_is_told_with_those_that_are():
    with pytest.raises(InvalidRequest, match="no scenario 'pruning'; there are memory, append"):
        chosen(["append", "pruning"])


def test_every_scenario_says_what_it_does():
    def is_told(scenario: Scenario) -> bool:
        return bool(scenario.title) and scenario.about.endswith(".")

    assert all(map(is_told, SUITE))
