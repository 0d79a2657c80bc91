from __future__ import annotations

import pytest

from kvstet.chat.messages import normalise
from kvstet.errors import InvalidRequest


def user(content: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": content}]


def calling(arguments: object, **fields: object) -> list[dict[str, object]]:
    function = {"name": "read", "arguments": arguments}
    return [{"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": function, **fields}]}]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("hi", "hi"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "hi"}], "hi"),
        (
            [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
            "a\nb",
        ),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}, "c"], "a\nb\nc"),
        ([{"type": "refusal", "refusal": "no"}], "no"),
        ([{"text": "untyped"}], "untyped"),
    ],
)
def test_content_becomes_a_string(content: object, text: str) -> None:
    assert normalise(user(content)) == user(text)


def test_absent_content_is_empty() -> None:
    assert normalise([{"role": "assistant"}]) == [{"role": "assistant", "content": ""}]


def test_arguments_become_an_object_in_the_order_they_were_sent() -> None:
    [message] = normalise(calling('{"b": 1, "a": {"é": null}}'))
    arguments = message["tool_calls"][0]["function"]["arguments"]
    assert list(arguments.items()) == [("b", 1), ("a", {"é": None})]


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "3", "[" * 100_000])
def test_arguments_that_hold_no_object_stay_a_string(arguments: str) -> None:
    assert normalise(calling(arguments))[0]["tool_calls"] == calling(arguments)[0]["tool_calls"]


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
def test_empty_arguments_are_an_empty_object(arguments: object) -> None:
    assert normalise(calling(arguments))[0]["tool_calls"] == calling({})[0]["tool_calls"]


def test_the_place_of_a_call_in_the_stream_is_left_out() -> None:
    assert normalise(calling({}, index=0)) == normalise(calling({}))


@pytest.mark.parametrize("empty", [{"tool_calls": []}, {"tool_calls": None}, {"reasoning_content": ""}, {"name": None}])
def test_empty_fields_are_left_out(empty: dict[str, object]) -> None:
    assert normalise([{"role": "assistant", "content": "A", **empty}]) == [{"role": "assistant", "content": "A"}]


def test_what_clients_add_for_themselves_is_left_out() -> None:
    noise = {"refusal": "r", "provider_specific_fields": {}, "annotations": [1], "cache_control": {}, "audio": {}}
    assert normalise([{"role": "user", "content": "U", **noise}]) == user("U")


def test_names_and_ids_are_kept() -> None:
    message = {"role": "tool", "content": "R", "name": "read", "tool_call_id": "1"}
    assert normalise([message]) == [message]


def test_messages_need_no_user_and_may_follow_each_other() -> None:
    messages = [{"role": role, "content": ""} for role in ("developer", "system", "assistant", "assistant", "tool")]
    assert normalise(messages) == messages


def test_the_clients_messages_are_not_changed() -> None:
    messages = calling("{}")
    normalise(messages)
    assert messages == calling("{}")


@pytest.mark.parametrize(
    ("message", "param", "reason"),
    [
        ({"role": "narrator", "content": ""}, "messages[1].role", "the role 'narrator' is not known"),
        ({"content": ""}, "messages[1].role", "the role None is not known"),
        ({"role": ["user"], "content": ""}, "messages[1].role", "is not known"),
        ("hi", "messages[1]", "must be an object"),
        ({"role": "user", "content": 3}, "messages[1].content", "must be a string or a list"),
        ({"role": "user", "content": [3]}, "messages[1].content[0]", "must be an object"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text", "must be a string"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages[1].content[0]", "takes text only"),
        ({"role": "user", "content": [{"type": 1}]}, "messages[1].content[0]", "takes text only"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "messages[1].tool_calls", "must be a list"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[1].tool_calls[0]", "must be an object"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].function", "must be an object"),
        (
            {"role": "assistant", "tool_calls": [{"function": {}}]},
            "messages[1].tool_calls[0].function.name",
            "must be a string",
        ),
    ],
)
def test_a_message_that_cannot_be_used_is_named(message: object, param: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        normalise([*user("fine"), message])
    assert caught.value.param == param


def test_a_conversation_without_messages_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="messages is empty"):
        normalise([])
