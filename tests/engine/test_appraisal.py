"""What a prompt would cost is told before it is asked for, exactly."""

from __future__ import annotations

import numpy as np
import pytest
from tests.engine.harness import Harness, words

from kvstet.engine.fake import ATTENTION, HYBRID, OPAQUE, RECURRENT, SWA
from kvstet.engine.messages import Appraise, Failed
from kvstet.errors import ContextOverflow, InvalidRequest
from kvstet.types import MemoryTraits, RequestId

ALL_KINDS = pytest.mark.parametrize("traits", [ATTENTION, SWA, HYBRID, RECURRENT, OPAQUE], ids=lambda t: t.kind)


@ALL_KINDS
@pytest.mark.parametrize("seed", range(5))
def test_what_is_told_is_what_comes(traits: MemoryTraits, seed: int):
    """Through growth, edits, forks, side requests, and state that has left the live cells."""
    random = np.random.default_rng(seed)
    h = Harness(traits, ram_bytes=1 << 22, num_cells=2048, max_length=2048)
    tokens, cuts = words(200, seed), [50, 200]
    for number in range(30):
        match random.integers(5):
            case 0:
                stop = int(random.integers(1, len(cuts) + 1))
                tokens, cuts = tokens[: cuts[stop - 1]], cuts[:stop]
            case 1:
                h.ask(f"side {number}", words(60, 1000 * seed + number))
            case 2:
                for branch in h.engine.live.parked[: int(random.integers(1, 4))]:
                    h.engine.live.release(branch)
            case _:
                h.idle()
        tokens = tokens + words(int(random.integers(1, 60)), 7 * seed + number)
        cuts.append(len(tokens))
        told = h.appraise(tokens)
        grown = h.ask(f"{number}", tokens, cuts=tuple(cuts), new=int(random.integers(1, 6)))
        assert told.reuse == h.reuse(f"{number}"), number
        tokens = grown


def test_nothing_is_changed_by_asking():
    h = Harness()
    h.ask("a", words(100), cuts=(50,))
    num_nodes, num_decoded = h.cache.tree.num_nodes, h.model.num_decoded_tokens
    told = h.appraise(words(70) + words(30, 1))
    assert told.reuse.num_computed_tokens == 30
    assert (h.cache.tree.num_nodes, h.model.num_decoded_tokens) == (num_nodes, num_decoded)
    assert h.engine.stats().num_requests == 1


def test_tokens_that_someone_is_just_computing_will_be_there():
    h = Harness(prefill_chunk=16)
    h.submit("a", words(200), cuts=(100,))
    h.step()
    told = h.appraise(words(200) + words(10, 1))
    assert told.reuse.num_reused_tokens == 200
    h.submit("b", words(200) + words(10, 1), cuts=(100, 200))
    h.run()
    assert told.reuse.num_computed_tokens == h.reuse("b").num_computed_tokens


def test_more_to_compute_takes_longer_and_state_from_a_tier_takes_time():
    h = Harness()
    h.ask("a", words(400))
    live = h.appraise(words(400) + words(10, 1))
    cold = h.appraise(words(410, 2))
    h.engine.live.release(h.engine.live.parked[0])
    saved = h.appraise(words(400) + words(10, 1))
    assert live.load_seconds == cold.load_seconds == 0 < saved.load_seconds
    assert 0 < live.compute_seconds < 0.1 * cold.compute_seconds
    assert saved.compute_seconds == live.compute_seconds


@pytest.mark.parametrize(("num_tokens", "error"), [(0, InvalidRequest), (201, ContextOverflow)])
def test_what_could_not_be_run_is_refused(num_tokens: int, error: type[Exception]):
    h = Harness(max_length=200)
    h.engine.appraise(Appraise(RequestId("a"), np.array(words(num_tokens), np.int32)))
    (event,) = h.engine.step()
    assert isinstance(event, Failed)
    assert isinstance(event.error, error)
