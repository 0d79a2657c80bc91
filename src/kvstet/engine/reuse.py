"""The kinds of reuse, each done on a model in the plainest way, so that what follows can be compared with a cold run.

Every kind computes the same tokens in the same batches as the cold run does, and on CPUs mostly in the same cells too:
batches of other shapes and cells in another order make a model's noise, and are kept out as far as can be. State that
was moved and is right then gives a cold run's numbers to the last digit, or nearly so. What comes between overwrites
the cells, so that nothing is found right because it never left. Sequences 0 and 1 are used; they must be empty, and are
left so. Each kind needs twice the passage's tokens in cells.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kvstet.engine.exactness import Rows, TailRun
from kvstet.engine.model import Model
from kvstet.types import Blob, MemoryTraits, SeqId, Tokens


@dataclass(frozen=True, slots=True, eq=False)
class Passage:
    """Tokens, and where they are cut into pieces that are computed one after the other.

    All pieces but the last are the *stem*, whose state is reused. The last is the *tail*, whose logits are compared.
    """

    tokens: Tokens
    stops: tuple[int, ...]
    """Ends of the pieces, ascending; the last is the number of tokens."""

    @classmethod
    def of(cls, tokens: Tokens, num_tail: int) -> Passage:
        """A stem of three uneven pieces and a tail of ``num_tail``; at least 4 tokens more than the tail."""
        stem = len(tokens) - num_tail
        return cls(tokens, (stem // 3, stem - stem // 4, stem, len(tokens)))

    @property
    def stem(self) -> int:
        """Tokens in front of the tail."""
        return self.stops[-2]

    @property
    def num_tail(self) -> int:
        return len(self.tokens) - self.stem

    @property
    def strangers(self) -> Tokens:
        """As many other tokens, for sequences that come in between."""
        return self.tokens[::-1]

    @property
    def edited(self) -> Tokens:
        """The stem, and then another tail."""
        return np.concatenate([self.tokens[: self.stem], self.strangers[: self.num_tail]])


def cold(model: Model, passage: Passage) -> Rows:
    """Logits of the tail, computed from nothing."""
    with sequences(model) as (seq, _):
        grow(model, seq, passage)
        return read_tail(model, seq, passage)


def behind_strangers(model: Model, passage: Passage) -> Rows:
    """The tail behind another stem: what state that is wrong throughout looks like."""
    wrong = np.concatenate([passage.strangers[: passage.stem], passage.tokens[passage.stem :]])
    return cold(model, Passage(wrong, passage.stops))


def prefix(model: Model, passage: Passage) -> Rows:
    """A live branch grows request by request, with requests of others in between."""
    with sequences(model) as (seq, other):
        for stop in passage.stops[:-1]:
            extend(model, seq, passage.tokens, stop)
            visit(model, other, passage)
        return read_tail(model, seq, passage)


def fork(model: Model, passage: Passage) -> Rows:
    """A branch is forked at its tip and goes on differently before the fork does."""
    with sequences(model) as (source, seq):
        grow(model, source, passage)
        model.fork(source, seq, passage.stem)
        extend(model, source, passage.edited, len(passage.edited))
        return read_tail(model, seq, passage)


def rollback(model: Model, passage: Passage) -> Rows:
    """A branch went on, and is forked where it stood before; through a checkpoint where the memory needs one."""
    with sequences(model) as (source, seq):
        grow(model, source, passage)
        checkpoint = saved_checkpoint(model, source)
        extend(model, source, passage.edited, len(passage.edited))
        if model.traits.has_spans:
            model.fork(source, seq, passage.stem)
        if checkpoint is not None:
            model.load_checkpoint(seq, checkpoint)
        return read_tail(model, seq, passage)


def reload(model: Model, passage: Passage) -> Rows:
    """All state is saved at the end, its cells are used by others, and it comes back."""
    with sequences(model) as (seq, other):
        grow(model, seq, passage)
        span = model.save_span(seq, 0, passage.stem) if model.traits.has_spans else None
        checkpoint = saved_checkpoint(model, seq)
        model.remove(seq)
        visit(model, other, passage)
        if span is not None:
            model.load_span(seq, span, 0, passage.stem)
        if checkpoint is not None:
            model.load_checkpoint(seq, checkpoint)
        return read_tail(model, seq, passage)


def delta_chain(model: Model, passage: Passage) -> Rows:
    """Each piece is saved as soon as it is computed, and becomes bytes; the chain of them is loaded in order."""
    with sequences(model) as (seq, other):
        spans: list[Blob] = []
        for start, stop in pairwise((0, *passage.stops[:-1])):
            extend(model, seq, passage.tokens, stop)
            spans.append(through_bytes(model.save_span(seq, start, stop)))
        checkpoint = saved_checkpoint(model, seq)
        model.remove(seq)
        visit(model, other, passage)
        for span in spans:
            model.load_span(seq, span, span.start, span.stop)
        if checkpoint is not None:
            model.load_checkpoint(seq, through_bytes(checkpoint))
        return read_tail(model, seq, passage)


@dataclass(frozen=True, slots=True)
class Kind:
    """One way in which state is used again."""

    name: str
    run: Callable[[Model, Passage], Rows]
    """Logits of the passage's tail, after the stem's state was used in this way."""
    needs_spans: bool = False

    def is_possible(self, traits: MemoryTraits) -> bool:
        """Where it is not, the engine computes the tokens again."""
        return traits.has_spans or not self.needs_spans


KINDS = (
    Kind("prefix", prefix),
    Kind("fork", fork),
    Kind("rollback", rollback),
    Kind("reload", reload),
    Kind("delta chain", delta_chain, needs_spans=True),
)


@contextmanager
def sequences(model: Model) -> Generator[tuple[SeqId, SeqId]]:
    """Two sequences, emptied in the end."""
    seqs = SeqId(0), SeqId(1)
    try:
        yield seqs
    finally:
        for seq in seqs:
            model.remove(seq)


def grow(model: Model, seq: SeqId, passage: Passage) -> None:
    """Compute what the sequence lacks of the stem, piece by piece."""
    for stop in passage.stops[:-1]:
        extend(model, seq, passage.tokens, stop)


def extend(model: Model, seq: SeqId, tokens: Tokens, stop: int) -> None:
    """Compute what the sequence lacks of the first ``stop`` tokens."""
    if model.length(seq) < stop:
        run = TailRun(model, seq, tokens[:stop], 0)
        while run.step(model.max_batch):
            continue


def visit(model: Model, seq: SeqId, passage: Passage) -> None:
    """Another conversation of the stem's length comes and goes."""
    extend(model, seq, passage.strangers, passage.stem)
    model.remove(seq)


def read_tail(model: Model, seq: SeqId, passage: Passage) -> Rows:
    """Logits of the tail behind a stem that is there."""
    return TailRun(model, seq, passage.tokens, passage.num_tail).finish(model.max_batch)


def saved_checkpoint(model: Model, seq: SeqId) -> Blob | None:
    """The summary state, where the memory has one."""
    return model.save_checkpoint(seq) if model.traits.has_checkpoints else None


def through_bytes(blob: Blob) -> Blob:
    """The blob as it comes back from a file or another machine."""
    return Blob(blob.start, blob.stop, np.frombuffer(blob.data.tobytes(), np.uint8))
