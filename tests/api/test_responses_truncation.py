from __future__ import annotations

from typing import Any, cast

import pytest

from kvstet.api.job import Conversation, Job
from kvstet.api.responses.truncation import job_that_fits
from kvstet.errors import ContextOverflow, TemplateError

MESSAGES = [
    {"role": "system", "content": "s"},
    {"role": "developer", "content": "d"},
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "2"},
    {"role": "tool", "content": "3"},
    {"role": "tool", "content": "4"},
    {"role": "system", "content": "5"},
    {"role": "user", "content": "6"},
]


class Template:
    """Holds so many messages, and can refuse to begin with one. A job of it is the text of its messages."""

    def __init__(self, num_messages: int, refused: str = "") -> None:
        self._num_messages = num_messages
        self._refused = refused
        self.num_jobs = 0

    def __call__(self, conversation: Conversation) -> Job:
        self.num_jobs += 1
        text = "".join(message["content"] for message in conversation.messages)
        if len(text) > self._num_messages:
            raise ContextOverflow(num_prompt_tokens=len(text), max_prompt_tokens=self._num_messages)
        if self._refused and text.removeprefix("sd").startswith(self._refused):
            raise TemplateError("That is no beginning.")
        return cast("Job", text)


def kept(template: Template, messages: list[dict[str, Any]] = MESSAGES) -> str:
    return cast("str", job_that_fits(Conversation(messages=messages), template))


@pytest.mark.parametrize(
    ("room", "text"),
    [(8, "sd123456"), (7, "sd23456"), (6, "sd56"), (5, "sd56"), (4, "sd56"), (3, "sd6")],
)
def test_no_more_than_needed_is_dropped_and_results_go_with_their_call(room: int, text: str):
    assert kept(Template(room)) == text


@pytest.mark.parametrize("room", [0, 1, 2])
def test_the_head_and_the_end_always_stay(room: int):
    with pytest.raises(ContextOverflow) as caught:
        kept(Template(room))
    assert caught.value.num_prompt_tokens == 8


def test_more_is_dropped_where_the_template_takes_no_such_beginning():
    assert kept(Template(7, refused="2")) == "sd56"


def test_a_single_message_cannot_be_shortened():
    with pytest.raises(ContextOverflow):
        kept(Template(0), [{"role": "user", "content": "1"}])


def test_few_attempts_are_needed():
    template = Template(10)
    assert kept(template, [{"role": "user", "content": "x"}] * 1000) == "x" * 10
    assert template.num_jobs < 15
