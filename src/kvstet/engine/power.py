"""Whether the machine runs on its battery."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil

CHECK_SECONDS = 30.0
"""How long an answer holds: asking reads files of the system."""


def on_battery() -> bool:
    """Whether there is a battery, and nothing plugged in. What cannot be told counts as plugged in."""
    sensors = getattr(psutil, "sensors_battery", None)  # not on all systems
    battery = sensors() if sensors else None
    return battery is not None and battery.power_plugged is False


class Power:
    """Where the machine's energy comes from, asked now and then."""

    def __init__(
        self, on_battery: Callable[[], bool] = on_battery, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_battery = on_battery
        self._clock = clock
        self._is_plugged_in = True
        self._asked: float | None = None

    def is_plugged_in(self) -> bool:
        """There is energy to spend on what may never be asked for."""
        now = self._clock()
        if self._asked is None or now - self._asked >= CHECK_SECONDS:
            self._is_plugged_in = not self._on_battery()
            self._asked = now
        return self._is_plugged_in
