"""What a template prints of a message is read back as that message, for every family."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reply_families import FAMILIES, Family, Said, tools_for
from reply_messages import NUM_BYTES, are_well_formed, in_pieces, meaning, read, said, said_by, watched

from kvstet.chat.deltas import message_of

cuts = st.lists(st.integers(1, 12), min_size=1, max_size=4)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=repr)
often = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))


def check(family: Family, message: Said, sizes: list[int]) -> None:
    held = family.held(message)
    reply, prompt = family.reply(held)
    parser = family.format.parser(tools=tools_for(held), prompt_end=prompt[-200:])
    deltas = read(parser, in_pieces(reply, sizes))
    assert are_well_formed(deltas)
    parsed = message_of(deltas)
    assert (parsed.reasoning, parsed.text) == (held.reasoning, held.text)
    assert [call.name for call in parsed.calls] == [call.name for call in held.calls]
    for got, sent in zip(parsed.calls, held.calls, strict=True):
        assert meaning(json.loads(got.arguments)) == meaning(sent.arguments)


@each_family
@often
@given(message=said(), sizes=cuts)
def test_what_a_template_prints_is_read_back(family: Family, message: Said, sizes: list[int]) -> None:
    check(family, message, sizes)


@pytest.mark.slow
@pytest.mark.timeout(600)
@each_family
def test_what_a_template_prints_is_read_back_ten_thousand_times(family: Family) -> None:
    """Without Hypothesis, which would take three times as long; a message that fails is named all the same."""
    random = Random(family.name)
    for _ in range(10_000):
        message = said_by(random.randbytes(NUM_BYTES))
        check(family, message, random.choices(range(1, 13), k=4))


@each_family
def test_only_the_markers_that_are_written_down_are_looked_out_for(family: Family) -> None:
    assert watched(family) <= {*family.ends, *family.opens}
