"""Questions about recorded conversations that have a known answer: see `kvstet.engine.probes`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from kvstet.cli.trace_edits import MIN_TAIL_TOKENS, EditedPrompt
from kvstet.engine.drift import Edit
from kvstet.engine.graft import SEAM_TOKENS
from kvstet.engine.probes import Probe
from kvstet.types import Tokenizer, Tokens

FACTS = (
    ("The access code of the staging server is", (" 7319", " 2846", " 5028", " 9460")),
    ("The database of the test system runs on the host", (" heron", " falcon", " otter", " badger")),
    ("The release branch of this project is called", (" maple", " cedar", " birch", " walnut")),
    ("The owner of the parser module is", (" Priya", " Tomas", " Ingrid", " Kofi")),
)
"""A sentence, and how it may end. None of them is in any recording."""

HEAD_TOKENS, DELETED_TOKENS, TAIL_TOKENS = 400, 80, SEAM_TOKENS + 320
"""Of the conversation: before the edit, what is deleted where the fact is kept, and what stands behind."""

CALL_TOKENS = 32
"""Of the beginning of a message, which are compared with other messages'."""

MAX_CALLS = 4


def fact_probes(text: Tokens, tokenizer: Tokenizer) -> Iterator[Probe]:
    """Each fact, once deleted by the edit and once kept behind it; ``text`` is what stands around it."""
    if len(text) < HEAD_TOKENS + DELETED_TOKENS + TAIL_TOKENS:
        return
    head, text = text[:HEAD_TOKENS], text[HEAD_TOKENS:]
    gone, text = text[:DELETED_TOKENS], text[DELETED_TOKENS:]
    seam, rest = text[:SEAM_TOKENS], text[SEAM_TOKENS:TAIL_TOKENS]
    for number, (sentence, ends) in enumerate(FACTS):
        right = number % len(ends)
        fact = _tokens(f"\n\nNote: {sentence}{ends[right]}. This is important.\n\n", tokenizer)
        question = _tokens(f"\n\nNote: {sentence}", tokenizer)
        candidates = tuple(_tokens(end, tokenizer) for end in ends)
        before, after = np.concatenate([head, fact, seam, rest]), np.concatenate([head, seam, rest])
        yield Probe("deleted", Edit("remove", sentence, before, after, question), candidates, right)
        before, after = np.concatenate([head, gone, seam, fact, rest]), np.concatenate([head, seam, fact, rest])
        yield Probe("kept", Edit("remove", sentence, before, after, question), candidates, right)


def call_probes(prompts: Sequence[EditedPrompt]) -> list[Probe]:
    """Of edited conversations, whether what the model said next is still likelier than what it said in others."""
    said = {text for prompt in prompts for text in _beginnings(prompt)}
    probes: dict[tuple[int, ...], Probe] = {}
    for prompt in prompts:
        probe = _call_probe(prompt, said)
        if probe is not None and len(probes) < MAX_CALLS:
            probes.setdefault(tuple(probe.candidates[0].tolist()), probe)
    return list(probes.values())


def _beginnings(edited: EditedPrompt) -> dict[tuple[int, ...], int]:
    """How each reply in the prompt begins, and where the first that begins so does."""
    starts: dict[tuple[int, ...], int] = {}
    for span in edited.replies:
        if span.stop - span.start >= CALL_TOKENS:
            starts.setdefault(tuple(edited.tokens[span.start : span.start + CALL_TOKENS].tolist()), span.start)
    return starts


def _call_probe(edited: EditedPrompt, said: set[tuple[int, ...]]) -> Probe | None:
    """None: too little stands between the edit and any reply, or there is no other to compare it with."""
    edit, tokens = edited.edit, edited.tokens
    starts = _beginnings(edited)
    first = edit.graft.moves[0].target
    later = [text for text, start in starts.items() if start - first >= MIN_TAIL_TOKENS]
    # What stands in the conversation already is likely because it does, and no candidate.
    others = sorted(said - starts.keys())[:3]
    if not later or not others:
        return None
    right = later[-1]
    start = starts[right]
    candidates = (right, *others)
    num_behind = len(tokens) - start - len(edit.continuation)
    cut = replace(
        edit,
        before=edit.before[: len(edit.before) - num_behind],
        after=tokens[:start],
        continuation=tokens[:0],
    )
    return Probe("next call", cut, tuple(np.array(candidate, np.int32) for candidate in candidates), 0)


def _tokens(text: str, tokenizer: Tokenizer) -> Tokens:
    return tokenizer.tokenize(text, add_special=False, parse_special=False)
