from __future__ import annotations

from typing import Any

import pytest
from tests.context.conversations import assistant, follow, names, result, tool, user

from kvstet.context.equivalent.equivalence import Equivalence

FIX = user("Fix it.")
A, B, C = tool("a"), tool("b"), tool("c")


def test_tools_stay_in_the_order_in_which_they_were_first_sent():
    equivalence = Equivalence()
    follow(equivalence, FIX, tools=[A, B, C])
    said = follow(equivalence, FIX, tools=[C, A, B])
    assert said.tools == [A, B, C]
    assert names(said) == [("tool-order", None)]
    assert follow(equivalence, user("Another task."), tools=[B, C, A]).tools == [A, B, C]


def test_the_order_of_keys_makes_no_other_tool():
    equivalence = Equivalence()
    follow(equivalence, FIX, tools=[A, B])
    turned = [{"function": each["function"], "type": "function"} for each in (B, A)]
    assert [each["function"]["name"] for each in follow(equivalence, FIX, tools=turned).tools] == ["a", "b"]


def test_a_new_tool_comes_last():
    equivalence = Equivalence()
    follow(equivalence, FIX, tools=[A, C])
    said = follow(equivalence, FIX, tools=[A, B, C])
    assert said.tools == [A, C, B]
    assert names(said) == [("tool-order", None)]
    assert follow(equivalence, FIX, tools=[C, B, A]).tools == [A, C, B]


def test_a_tool_that_is_described_otherwise_keeps_its_place():
    equivalence = Equivalence()
    follow(equivalence, FIX, tools=[A, B])
    other = tool("a", "It lists.")
    assert follow(equivalence, FIX, tools=[B, other]).tools == [other, B]


def test_tools_that_are_sent_twice_stay_so():
    equivalence = Equivalence()
    assert follow(equivalence, FIX, tools=[A, B, A]).tools == [A, A, B]
    assert follow(equivalence, FIX, tools=[B, A, A]).tools == [A, A, B]


def test_switched_off_they_stand_as_they_were_sent():
    equivalence = Equivalence()
    follow(equivalence, FIX, tools=[A, B])
    said = follow(equivalence, FIX, tools=[B, A], without=["tool-order"])
    assert (said.tools, names(said)) == ([B, A], [])


def arguments_of(message: dict[str, Any]) -> object:
    return message["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize("arguments", ['{"n":1,"path":"."}', r'{"n": 1, "path": "\u002e"}', {"n": 1, "path": "."}])
def test_arguments_stay_as_they_were_first_written(arguments: Any):
    equivalence = Equivalence()
    first = '{"path": ".", "n": 1}'
    follow(equivalence, FIX, assistant("", first), result("a.py"))
    said = follow(equivalence, FIX, assistant("", arguments), result("a.py"))
    assert arguments_of(said.messages[1]) == first
    assert names(said) == [("arguments", 1)]


@pytest.mark.parametrize("arguments", ['{"path": ".", "n": 2}', '{"path": "."}', "{", ""])
def test_other_arguments_are_others(arguments: str):
    equivalence = Equivalence()
    follow(equivalence, FIX, assistant("", '{"path": ".", "n": 1}'), result("a.py"))
    said = follow(equivalence, FIX, assistant("", arguments), result("a.py"))
    assert arguments_of(said.messages[1]) == arguments
    assert names(said) == []


def test_white_space_between_arguments_is_not_worth_a_word():
    equivalence = Equivalence()
    follow(equivalence, FIX, assistant("", '{"path": "."}'), result("a.py"))
    assert names(follow(equivalence, FIX, assistant("", '{"path":"."}'), result("a.py"))) == []
