from __future__ import annotations

import numpy as np

from kvstet.cache.tier import BlobKey, RamTier
from kvstet.types import Blob


def blob(num_bytes: int) -> Blob:
    return Blob(0, 4, np.arange(num_bytes, dtype=np.uint8))


A, B = BlobKey("span", b"a", 0), BlobKey("checkpoint", b"a", 0)


def test_a_blob_comes_back_as_it_was_put():
    tier = RamTier(100)
    kept = blob(10)
    tier.put(A, kept)
    assert tier.get(A) is kept
    assert tier.get(B) is None
    assert repr(tier) == "<RamTier 1 blobs, 10/100 bytes>"


def test_bytes_are_counted_through_puts_replacements_and_drops():
    tier = RamTier(100)
    tier.put(A, blob(10))
    tier.put(B, blob(20))
    assert (tier.used_bytes, len(tier)) == (30, 2)
    tier.put(A, blob(3))
    assert (tier.used_bytes, len(tier)) == (23, 2)
    tier.drop(A)
    tier.drop(A)
    assert (tier.used_bytes, len(tier)) == (20, 1)
    assert tier.get(A) is None


def test_a_span_and_a_checkpoint_of_one_prefix_are_two_blobs():
    tier = RamTier(100)
    tier.put(A, blob(1))
    tier.put(B, blob(2))
    assert tier.get(A) is not tier.get(B)
