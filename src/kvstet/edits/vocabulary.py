"""The words by which this package knows clocks, git status, reminders, side requests and summaries in a prompt.

What replaces the words of a recorded session by others (`kvstet.traces.redaction`) has to leave these as they are, or
its verdicts would be others. A test holds them to the patterns of `kvstet.edits.volatile` and `kvstet.edits.relation`.
"""

from __future__ import annotations

from itertools import product

_TIME = """
    a am as at clock current date datetime epoch gmt m now of p pm time timestamp today unix utc z
    currentclock currentdate currentdatetime currentepoch currentnow currenttime currenttimestamp currenttoday
    january february march april may june july august september october november december
    jan feb mar apr jun jul aug sep sept oct nov dec
    monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thur thurs fri sat sun
"""
"""Letters alone stand in ``5 p.m.`` and ``10:42 Z``."""

_IDS = " ".join(
    ["correlation id invocation message nonce req request span trace turn uuid is"]
    + [
        "".join(pair)
        for pair in product(
            ("request", "req", "trace", "span", "correlation", "invocation", "message", "turn"), ("id", "uuid")
        )
    ]
)

_COUNTERS = """
    attempt attempts budget context count credit credits far iteration iterations left message messages number of out
    quota remaining request requests so step steps token tokens turn turns usage used window
"""

_PLACES = """
    anthropic billing branch clean commits current cwd default dir directory git gitstatus head header in is main on
    recent status the this tree user working x your
"""

_BLOCKS = "context details end environment from instructions name project reminder system"

_PURPOSES = """
    commit extract extracts extracted extracting extraction follow followup generate generated generates generating
    generation generator input memories memory message messages next predict predicting predicts prediction prompt
    prompts suggest suggested suggesting suggestion suggestions suggests title topic up write writer writes create
    created creates
    summarise summarize summariser summarizer summarisation summarization summarising summarizing
"""

_SUMMARIES = "been compacted continued conversation far from of our previous so summary the this was were a"

VOCABULARY = frozenset(" ".join((_TIME, _IDS, _COUNTERS, _PLACES, _BLOCKS, _PURPOSES, _SUMMARIES)).split())
"""In lower case."""
