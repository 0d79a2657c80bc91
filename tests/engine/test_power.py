"""Whether there is energy to spend."""

from __future__ import annotations

import psutil
import pytest

from kvstet.engine.power import CHECK_SECONDS, Power, on_battery


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_is_asked_now_and_then_only():
    clock, answers = Clock(), [True, False]
    power = Power(lambda: answers.pop(0), clock)
    assert not power.is_plugged_in()
    clock.now = CHECK_SECONDS - 1
    assert not power.is_plugged_in()
    clock.now = CHECK_SECONDS
    assert power.is_plugged_in()
    assert answers == []


class Battery:
    def __init__(self, power_plugged: bool | None) -> None:
        self.power_plugged = power_plugged


@pytest.mark.parametrize(
    ("battery", "expected"), [(None, False), (Battery(True), False), (Battery(None), False), (Battery(False), True)]
)
def test_only_a_battery_without_a_plug_counts(battery: Battery | None, expected: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert on_battery() is expected


def test_systems_that_cannot_tell_count_as_plugged_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert not on_battery()
