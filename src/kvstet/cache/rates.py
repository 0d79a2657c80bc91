"""What computing and loading cost on this machine, learnt from what they took."""

from __future__ import annotations

from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Number = TypeVar("Number", float, NDArray[np.float64])

TierName = Literal["ram", "disk"]

MEMORY = 0.98
"""Weight that an observation keeps with each later one: the last fifty or so count."""

MIN_LOAD_BYTES = 1 << 16
"""Smaller loads are all overhead and say nothing about bandwidth."""


class Rates:
    """Seconds per unit of work. Starts from a guess and follows what is observed.

    Computing ``n`` tokens behind others takes ``n * seconds_per_token + looks * seconds_per_look``, where each token
    looks back on all tokens before it. The two are fitted by least squares on relative errors, so that short and long
    prompts count alike.
    """

    def __init__(
        self,
        seconds_per_token: float = 1e-2,
        seconds_per_look: float = 1e-7,
        *,
        ram_bytes_per_second: float = 2e9,
        disk_bytes_per_second: float = 5e8,
    ) -> None:
        self.seconds_per_token = seconds_per_token
        self.seconds_per_look = seconds_per_look
        self.bytes_per_second: dict[TierName, float] = {"ram": ram_bytes_per_second, "disk": disk_bytes_per_second}
        self._squares = np.zeros((2, 2))
        self._sums = np.zeros(2)
        # The guess counts as much as two observations, a short prompt's and a long one's.
        for num_tokens, num_looks in ((512, 512 * 256), (512, 512 * 16384)):
            self._add(num_tokens, num_looks, num_tokens * seconds_per_token + num_looks * seconds_per_look)

    def compute_seconds(self, start: int, stop: Number) -> Number:
        """Seconds to decode tokens ``[start, stop)`` behind ``start`` others."""
        return (stop - start) * self.seconds_per_token + num_looks(start, stop) * self.seconds_per_look

    def load_seconds(self, num_bytes: float, tier: TierName) -> float:
        """Seconds to bring saved state back to life."""
        return num_bytes / self.bytes_per_second[tier]

    def observe_compute(self, num_tokens: int, looks: float, seconds: float) -> None:
        """So many prompt tokens took so long."""
        if num_tokens <= 0 or seconds <= 0:
            return
        self._add(num_tokens, looks, seconds)
        per_token, per_look = np.linalg.solve(self._squares + 1e-12 * np.eye(2), self._sums)
        if per_look < 0:
            per_token, per_look = self._sums[0] / self._squares[0, 0], 0.0
        elif per_token < 0:
            per_token, per_look = 0.0, self._sums[1] / self._squares[1, 1]
        self.seconds_per_token, self.seconds_per_look = float(per_token), float(per_look)

    def observe_load(self, num_bytes: int, tier: TierName, seconds: float) -> None:
        """So many bytes of saved state came back in so long."""
        if num_bytes >= MIN_LOAD_BYTES and seconds > 0:
            known = self.bytes_per_second[tier]
            # In the logarithm: one slow load among fast ones must not count for all of them.
            self.bytes_per_second[tier] = float(known**0.9 * (num_bytes / seconds) ** 0.1)

    def _add(self, num_tokens: int, looks: float, seconds: float) -> None:
        row = np.array([num_tokens, looks]) / seconds
        self._squares = MEMORY * self._squares + np.outer(row, row)
        self._sums = MEMORY * self._sums + row

    def __repr__(self) -> str:
        loads = ", ".join(f"{tier} {rate / 1e6:.0f} MB/s" for tier, rate in self.bytes_per_second.items())
        return f"<Rates {1 / max(self.seconds_per_token, 1e-12):.0f} tokens/s, {loads}>"


def num_looks(start: int, stop: Number) -> Number:
    """How often tokens ``[start, stop)`` look back on a token before them."""
    return (stop * stop - start * start) / 2
