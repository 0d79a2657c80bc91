from __future__ import annotations

import threading

import pytest
from tests.dialects.samples import ENCRYPTED, SIGNED, assistant, call, request, user

from kvstet.dialects.dialect import dialect_named
from kvstet.dialects.reply import CallBegin, CallEnd, Delta, ReasoningDelta, ReasoningSeal, ReplyEnd, TextDelta
from kvstet.dialects.seal_memory import SealMemory
from kvstet.dialects.seals import carried_in, carrier_of
from kvstet.dialects.whole import reply_of

THOUGHT: list[Delta] = [ReasoningDelta("Hm"), ReasoningDelta("m.\n"), ReasoningSeal(SIGNED)]
DETAIL = {**SIGNED, "text": "Hmm.\n"}


def recorded(memory: SealMemory, *deltas: Delta, owner: str = "") -> None:
    memory.keep(reply_of(deltas), owner)


@pytest.mark.parametrize(
    "returned",
    [
        assistant("Yes.", call("a"), reasoning_content="Hmm.\n"),
        assistant("Yes.", call("a"), reasoning_content="Hmm."),
        assistant("Yes.", call("a")),
        assistant("", reasoning_content="Hmm."),
    ],
    ids=["as it was", "trimmed", "without its reasoning", "without its call"],
)
def test_a_seal_is_put_back_whatever_the_client_left_out(returned: dict[str, object]) -> None:
    memory = SealMemory()
    recorded(memory, *THOUGHT, TextDelta("Yes."), CallBegin(0, "a", "read"), CallEnd(0), ReplyEnd("tool_calls"))
    restored = memory.restored(request(user("?"), returned))
    assert restored.messages[1]["reasoning_details"] == [DETAIL]
    assert restored.messages[1]["reasoning_content"] == "Hmm.\n"


def test_a_reply_of_text_alone_is_known_by_it() -> None:
    memory = SealMemory()
    recorded(memory, ReasoningSeal(ENCRYPTED), TextDelta("Yes, it is."))
    restored = memory.restored(request(user("?"), assistant("Yes, it is."), assistant("No.")))
    assert restored.messages[1]["reasoning_details"] == [ENCRYPTED]
    assert "reasoning_details" not in restored.messages[2]


def test_nobody_gets_anothers_seal() -> None:
    memory = SealMemory()
    recorded(memory, *THOUGHT, CallBegin(0, "a", "read"), owner="one")
    asked = request(user("?"), assistant("", call("a")))
    assert memory.restored(asked, "two") == asked
    assert memory.restored(asked, "one") != asked


def test_a_seal_that_is_there_is_left_alone() -> None:
    memory = SealMemory()
    recorded(memory, *THOUGHT, CallBegin(0, "a", "read"))
    asked = request(user("?"), assistant("", call("a"), reasoning_details=[ENCRYPTED]))
    assert memory.restored(asked) == asked


def test_replies_without_seals_take_no_room() -> None:
    memory = SealMemory()
    recorded(memory, ReasoningDelta("Hm"), TextDelta("Yes."))
    assert repr(memory) == "SealMemory(0 of 10000 replies, 0 characters)"


def test_the_oldest_reply_is_forgotten_first() -> None:
    memory = SealMemory(max_replies=2)
    for number in range(3):
        recorded(memory, ReasoningDelta(f"{number}"), ReasoningSeal(SIGNED), CallBegin(0, f"call_{number}", "read"))
    found = memory.restored(request(*(assistant("", call(f"call_{number}")) for number in range(3))))
    assert ["reasoning_details" in message for message in found.messages] == [False, True, True]


def test_a_seal_that_is_given_again_is_not_forgotten_with_its_first_time() -> None:
    memory = SealMemory(max_replies=2)
    for said in ("same", "other", "same", "third"):
        recorded(memory, ReasoningDelta(said), ReasoningSeal(SIGNED), TextDelta(f"{said}!"))
    (message,) = memory.restored(request(assistant("same!"))).messages
    assert "reasoning_details" in message


def test_threads_may_share_a_memory() -> None:
    memory = SealMemory(max_replies=50)

    def work(name: int) -> None:
        for number in range(200):
            recorded(memory, *THOUGHT, CallBegin(0, f"{name}-{number}", "read"))
            memory.restored(request(assistant("", call(f"{name}-{number}"))))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert repr(memory).startswith("SealMemory(50 of 50 replies, ")


def test_long_seals_take_no_more_room_than_there_is() -> None:
    memory = SealMemory(max_characters=1000)
    for number in range(3):
        sealed = {"type": "reasoning.encrypted", "data": "x" * 450}
        recorded(memory, ReasoningSeal(sealed), CallBegin(0, f"call_{number}", "read"))
    found = memory.restored(request(*(assistant("", call(f"call_{number}")) for number in range(3))))
    assert ["reasoning_details" in message for message in found.messages] == [False, True, True]


def test_a_carrier_holds_what_was_put_in() -> None:
    assert carried_in(carrier_of([DETAIL, ENCRYPTED]), "") == [DETAIL, ENCRYPTED]
    assert carried_in(carrier_of([]), "Hm.") == []
    assert carrier_of([])


def test_a_vendors_own_seal_is_no_carrier_and_a_damaged_one_holds_nothing() -> None:
    assert carried_in("c2lnbmVk", "") is None
    assert carried_in("kvstet-seal.%%%", "") == []
    assert carried_in(carrier_of([DETAIL])[:-5], "") == []


@pytest.mark.parametrize(
    ("upstream", "model", "seal"), [("messages", "claude-opus-4-8", ENCRYPTED), ("responses", "gpt-5", SIGNED)]
)
def test_another_vendors_seal_is_named_where_it_is_lost(upstream: str, model: str, seal: dict[str, str]) -> None:
    asked = request(user("?"), assistant("Yes.", reasoning_details=[seal]), user("?"), model=model)
    assert "messages.reasoning_details" in dialect_named(upstream).write_request(asked).dropped
