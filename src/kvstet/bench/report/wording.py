"""Numbers as people read them. None is a dash: nobody knows."""

from __future__ import annotations

from kvstet.bench.report.spread import Spread

UNKNOWN = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
KIB = 1 << 10


def count(number: float | None) -> str:
    return UNKNOWN if number is None else f"{number:,.0f}"


def seconds(number: float | None) -> str:
    if number is None:
        return UNKNOWN
    if number < 0.0995:
        return f"{number * 1000:.0f} ms" if number >= 0.00095 else f"{number * 1000:.1g} ms"
    return f"{number:.2f} s" if number < 9.995 else f"{number:,.1f} s" if number < 99.95 else f"{number:,.0f} s"


def duration(number: float) -> str:
    """Of a whole run."""
    minutes, rest = divmod(round(number), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def size(number: float | None) -> str:
    """Bytes."""
    if number is None:
        return UNKNOWN
    for unit in ("bytes", "KiB", "MiB"):
        if number < KIB * 10:
            return f"{number:,.1f} {unit}" if number < 100 and unit != "bytes" else f"{number:,.0f} {unit}"
        number /= KIB
    return f"{number:,.1f} GiB"


def share(part: float | None, whole: float | None) -> str:
    if part is None or not whole:
        return UNKNOWN
    percent = 100 * part / whole
    return f"{percent:.1f}%" if percent < 9.95 else f"{percent:.0f}%"


def times(factor: float | None) -> str:
    if factor is None:
        return UNKNOWN
    return f"{factor:.2f}" if factor < 9.995 else f"{factor:.1f}" if factor < 99.95 else f"{factor:,.0f}"


def factor(number: float) -> str:
    return f"{times(number)} {TIMES}"


def times_with_range(spread: Spread | None) -> str:
    """The factor, and in brackets its range: ``1.28 to 1.70``."""
    if spread is None:
        return UNKNOWN
    if len(spread.values) == 1:
        return factor(spread.median)
    return f"{factor(spread.median)} ({times(spread.low)} to {times(spread.high)})"


def in_unit(number: float | None, unit: str) -> str:
    """Of a measured value, whose unit is as `kvstet.bench.report.measures` reads it from the name."""
    if number is None:
        return UNKNOWN
    if unit == "bytes":
        return size(number)
    if unit == "seconds":
        return seconds(number)
    text = f"{number:,.0f}" if abs(number) >= 100 else f"{number:,.1f}" if abs(number) >= 10 else f"{number:.3g}"
    return f"{text} {unit}".strip()


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
