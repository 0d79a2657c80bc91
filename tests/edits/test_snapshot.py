"""What is read of a request (`kvstet.edits.snapshot`)."""

from __future__ import annotations

import numpy as np
from tests.edits.samples import TOOLS, call, conversation, snap, user

from kvstet.edits.snapshot import item_of, snapshot_of
from kvstet.types import MessageSpan, Prompt


def test_a_message_is_read_whole():
    item = snapshot_of([call(1)], TOOLS).items[0]
    assert (item.role, item.text, item.call_id) == ("assistant", "Looking at part 1.", None)
    assert item.reasoning.startswith("I should read part 1")
    assert [(each.name, each.arguments, each.texts) for each in item.calls] == [
        ("read", '{"path": "1.txt"}', ("1.txt",))
    ]


def test_white_space_around_a_reply_is_spelling_and_around_a_question_is_meaning():
    first, second = (item_of({"role": "assistant", "content": text}) for text in ("Yes.", "Yes.\n"))
    assert first.meaning == second.meaning and first.exact != second.exact
    first, second = (item_of(user(text)) for text in ("Yes?", "Yes?\n"))
    assert first.meaning != second.meaning


def test_a_reply_of_white_space_can_be_read():
    empty, blank = (item_of({"role": "assistant", "content": text}) for text in ("", " \n"))
    assert empty.meaning == blank.meaning and empty.exact != blank.exact


def test_ids_of_calls_are_spelling():
    first, second = (item_of({"role": "tool", "tool_call_id": id, "content": "4"}) for id in ("call_1", "call_2"))
    assert first.meaning == second.meaning and first.exact != second.exact


def test_texts_do_not_run_into_each_other():
    first = item_of({"role": "assistant", "content": "ab", "reasoning_content": "c"})
    second = item_of({"role": "assistant", "content": "a", "reasoning_content": "bc"})
    assert first.meaning != second.meaning


def test_messages_whose_reasoning_the_template_leaves_out_are_known():
    sent = snap(conversation(2))
    text = "I should read part 2 before I say anything. And so on."
    prompt = Prompt(np.zeros(1, np.int32), (MessageSpan(0, 1, 0, "system"),), text)
    shown = sent.with_prompt(prompt)
    assert shown.unthought == {2} and shown.spans == prompt.spans


def test_a_repr_tells_no_text():
    assert "Find the bug" not in repr(snap(conversation()))
    assert "part 1" not in repr(snap(conversation()).items[2])
