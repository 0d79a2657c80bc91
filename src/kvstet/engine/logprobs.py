"""Log-probabilities of sampled tokens, as the logits gave them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kvstet.engine.messages import TokenLogprobs


def logprobs_of(logits: NDArray[np.float32] | None, token: int, num_top: int | None) -> TokenLogprobs | None:
    """The chosen token's log-probability and the best ones, from logits of shape ``(vocab_size,)``."""
    if logits is None or num_top is None:
        return None
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    best = np.argpartition(scores, -num_top)[-num_top:] if 0 < num_top < len(scores) else np.arange(0)
    best = best[np.argsort(scores[best])[::-1]]
    return TokenLogprobs(float(scores[token]), tuple((int(i), float(scores[i])) for i in best))
