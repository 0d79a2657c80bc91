"""What is shown looks like what it is, and who is asked knows for what."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kvstet.agent.confirmation import Asking, Scripted, Yes
from kvstet.agent.shown import one_line, shown
from kvstet.agent.tools.tool import Action


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain\ttext\nand more", "plain\ttext\nand more"),
        ("\x1b[2J\x1b]0;title\x07", "␛[2J␛]0;title␇"),
        ("rm -rf /\recho ok", "rm -rf /␍echo ok"),
        ("a\r\nb", "a\nb"),
        ("a\x08b\x7f", "a␈b<u+007f>"),
        ("\x9b31m", "<u+009b>31m"),
        ("safe\u202egpj.exe", "safe<right-to-left override>gpj.exe"),
        ("in\u200bvisible", "in<zero width space>visible"),
        ("half \ud800", "half \ufffd"),
        ("müller 日本 🙂", "müller 日本 🙂"),
    ],
)
def test_characters_that_deceive_are_spelt_out(text: str, seen: str) -> None:
    assert shown(text) == seen


def test_a_line_is_one_line() -> None:
    assert one_line("a\n b\tc") == "a b c"
    assert one_line("x" * 500, 10) == "x" * 9 + "…"


def asking(*typed: str | type[BaseException]) -> tuple[Asking, list[Action], list[str]]:
    answers: Iterator[str | type[BaseException]] = iter(typed)
    seen: list[Action] = []
    questions: list[str] = []

    def ask(question: str) -> str:
        questions.append(question)
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    return Asking(seen.append, ask), seen, questions


RUN = Action("bash", "run x", "x")
EDIT = Action("edit", "change x", "x", repeats=True)


@pytest.mark.parametrize(
    ("typed", "allowed"),
    [(["y"], True), (["YES "], True), (["n"], False), ([""], False), (["no"], False), (["what?", "", "y"], False)],
)
async def test_only_a_yes_is_a_yes(typed: list[str], allowed: bool) -> None:
    confirmation, seen, _ = asking(*typed)
    assert await confirmation.allows(RUN) is allowed
    assert seen == [RUN]


async def test_whoever_goes_away_has_not_said_yes() -> None:
    confirmation, _, _ = asking(EOFError)
    assert not await confirmation.allows(RUN)


async def test_whoever_interrupts_stops_all_of_it() -> None:
    confirmation, _, _ = asking(KeyboardInterrupt)
    with pytest.raises(asyncio.CancelledError):
        await confirmation.allows(RUN)


async def test_always_holds_for_one_tool_and_never_for_commands() -> None:
    confirmation, seen, questions = asking("a", "a", "n", "n")
    assert await confirmation.allows(EDIT)
    assert await confirmation.allows(EDIT)
    assert seen == [EDIT]
    # A command has no such answer, so it is asked again.
    assert not await confirmation.allows(RUN)
    assert not await confirmation.allows(Action("write", "create y", repeats=True))
    assert ["always" in question for question in questions] == [True, False, False, True]


async def test_the_other_confirmations_do_what_they_say() -> None:
    assert await Yes().allows(RUN)
    scripted = Scripted([True])
    assert [await scripted.allows(RUN), await scripted.allows(RUN)] == [True, False]
