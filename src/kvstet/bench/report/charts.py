"""The pictures with axes: time to first token against history length, and drift against repair."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvstet.bench.report import wording
from kvstet.bench.report.drawing import Titles, picture
from kvstet.bench.report.spread import Spread
from kvstet.bench.report.strips import middle_repetition
from kvstet.bench.report.themes import Role, Theme, server_role
from kvstet.bench.results import DriftPoint, Results, Scenario
from kvstet.replay.results import Asked, Run

MARKERS = ("o", "s", "^", "D")
"""Of the servers, by place: told apart without colours too."""
LINE_POINTS = 11.0
MAX_LABEL = 24
"""Characters."""
FIRST_TOKEN = "seconds to first token"
HISTORY = "tokens in the prompt"


def growth_chart(results: Results, scenario: Scenario, theme: Theme) -> str | None:
    """One conversation that grows: a line for each server, with its range. None where nothing was timed."""
    lines = [(name, points) for name in _names(results) if (points := _by_label(scenario, name))]
    if not lines:
        return None

    def draw(axes: Any) -> Titles:
        titles: dict[str, list[str]] = {}
        for name, points in lines:
            place = _place(results, name)
            _draw_line(axes, points, place)
            titles[f"line-{place}"] = [_pointed(name, length, times) for length, times in points]
        _label_ends(
            axes, [(name, points[-1][0], points[-1][1].median, _place(results, name)) for name, points in lines]
        )
        _scale_growth(axes)
        return titles

    says = f"{scenario.title}: {FIRST_TOKEN} against {HISTORY}. " + "; ".join(_said(*line) for line in lines)
    return picture(draw, name=f"growth-{scenario.name}", says=says, theme=theme)


def waiting_chart(results: Results, theme: Theme) -> str | None:
    """Requests of the pair in the middle of each session: time to first token against length of the prompt."""
    dots = [(name, found) for name in _names(results) if (found := list(_dots(results, name)))]
    if not dots:
        return None

    def draw(axes: Any) -> Titles:
        titles: dict[str, list[str]] = {}
        for name, found in dots:
            place = _place(results, name)
            lengths, times, says = zip(*found, strict=True)
            look = {"s": 16, "marker": MARKERS[place % 4], "linewidths": 0, "alpha": 0.55}
            axes.scatter(lengths, times, color=server_role(place).stand_in, **look, gid=f"dots-{place}")
            titles[f"dots-{place}"] = list(says)
        _scale_waiting(axes)
        return titles

    counts = wording.listed([f"{len(found):,} of {name}" for name, found in dots])
    return picture(draw, name="waiting", says=f"{FIRST_TOKEN} against {HISTORY}, requests: {counts}", theme=theme)


def drift_chart(results: Results, theme: Theme) -> str | None:
    """How far approximate state is from exact, against how much of it is repaired; with the noise floor."""
    edits = list(dict.fromkeys(point.edit for point in results.drift))
    if not edits:
        return None

    lowest = _lowest(results)

    def draw(axes: Any) -> Titles:
        titles: dict[str, list[str]] = {}
        ends: list[tuple[str, float, float, int]] = []
        for place, edit in enumerate(edits):
            points = _repaired(results.drift, edit)
            heights = [max(point.mean_divergence, lowest) for point in points]
            _draw_drift(axes, [point.num_repaired_tokens for point in points], heights, place)
            titles[f"drift-{place}"] = [_drifted(point) for point in points]
            ends.append((edit, points[-1].num_repaired_tokens, heights[-1], place))
        _draw_noise(axes, results.noise_divergence)
        _scale_drift(axes, results.drift)
        _label_ends(axes, ends)
        return titles

    floor = "" if results.noise_divergence is None else f"; noise floor {results.noise_divergence:.1e} nats"
    says = f"drift against repaired tokens after {wording.listed(edits)}{floor}"
    return picture(draw, name="drift", says=says, theme=theme)


def _names(results: Results) -> list[str]:
    return [server.name for server in results.servers]


def _place(results: Results, name: str) -> int:
    return _names(results).index(name)


def _by_label(scenario: Scenario, server: str) -> list[tuple[float, Spread]]:
    """Of each request, in order: the length of its prompt and its times, over repetitions."""
    runs = [run for run in scenario.runs if run.server == server]
    return [point for index in range(max((len(run.asked) for run in runs), default=0)) if (point := _at(runs, index))]


def _at(runs: list[Run], index: int) -> tuple[float, Spread] | None:
    asked = [run.asked[index] for run in runs if index < len(run.asked)]
    lengths = Spread.of(each.num_prompt_tokens for each in asked)
    times = Spread.of(each.first_token_seconds for each in asked)
    return (lengths.median, times) if lengths is not None and lengths.median and times is not None else None


def _dots(results: Results, server: str) -> Iterator[tuple[int, float, str]]:
    """Length, seconds and words, of all requests that tell both."""
    for scenario in (scenario for scenario in results.scenarios if scenario.kind == "session"):
        for asked in _in_middle(results, scenario, server):
            if asked.num_prompt_tokens and asked.first_token_seconds:
                told = f"{server}, {scenario.title}, {asked.label}: {wording.seconds(asked.first_token_seconds)}"
                yield asked.num_prompt_tokens, asked.first_token_seconds, told


def _in_middle(results: Results, scenario: Scenario, server: str) -> list[Asked]:
    repetition = middle_repetition(scenario, _names(results)[0])
    runs = (run for run in scenario.runs if run.server == server and run.repetition == repetition)
    return [asked for run in runs for asked in run.asked]


def _pointed(server: str, length: float, times: Spread) -> str:
    spread = f" ({wording.seconds(times.low)} to {wording.seconds(times.high)})" if len(times.values) > 1 else ""
    return f"{server}, {wording.count(length)} tokens: {wording.seconds(times.median)}{spread}"


def _said(server: str, points: list[tuple[float, Spread]]) -> str:
    (short, first), (long, last) = points[0], points[-1]
    return (
        f"{server} from {wording.seconds(first.median)} at {wording.count(short)} tokens"
        f" to {wording.seconds(last.median)} at {wording.count(long)}"
    )


def _draw_line(axes: Any, points: list[tuple[float, Spread]], place: int) -> None:
    colour = server_role(place).stand_in
    lengths = [length for length, _ in points]
    lows, highs = [times.low for _, times in points], [times.high for _, times in points]
    axes.fill_between(lengths, lows, highs, color=colour, alpha=0.16, linewidth=0)
    medians = [times.median for _, times in points]
    axes.plot(
        lengths, medians, color=colour, marker=MARKERS[place % 4], markersize=4.5, linewidth=1.8, gid=f"line-{place}"
    )


def _scale_waiting(axes: Any) -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    axes.yaxis.set_major_formatter("{x:g} s")
    _scale_lengths(axes)


def _scale_growth(axes: Any) -> None:
    """Linear, from 0: how steep it is, is what it shows."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter("{x:g} s")
    _scale_lengths(axes)


def _scale_lengths(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 4, 5, 10]))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _finish(axes, HISTORY, FIRST_TOKEN)


def _finish(axes: Any, along: str, up: str) -> None:
    from matplotlib.ticker import NullLocator

    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(along)
    axes.set_title(up, loc="left", fontsize=9, color=Role.DIM.stand_in)


def _thousands(number: float) -> str:
    return f"{number / 1024:g}k" if number >= 1024 else f"{number:g}"


def _label_ends(axes: Any, ends: list[tuple[str, float, float, int]]) -> None:
    """Names of the lines at their right ends: (name, x, y, place). Those that would lie on each other make room. Scales
    and limits have to be set before."""
    ranked = sorted(ends, key=lambda end: end[2])
    points_per_pixel = 72 / axes.figure.dpi
    heights = [float(axes.transData.transform((x, y))[1]) * points_per_pixel for _, x, y, _ in ranked]
    for (name, x, y, place), height, room in zip(ranked, heights, _apart(heights), strict=True):
        look = {"color": server_role(place).stand_in, "fontweight": "bold", "va": "center", "annotation_clip": False}
        axes.annotate(_short(name), (x, y), xytext=(8, room - height), textcoords="offset points", **look)


def _short(name: str) -> str:
    """What has room beside a line."""
    name = name.removeprefix("http://")
    return name if len(name) <= MAX_LABEL else f"{name[: MAX_LABEL - 1]}…"


def _apart(heights: list[float]) -> list[float]:
    """Ascending heights, in points, at least a line of text from each other."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LINE_POINTS) if placed else height)
    return placed


def _repaired(drift: list[DriftPoint], edit: str) -> list[DriftPoint]:
    return sorted((point for point in drift if point.edit == edit), key=lambda point: point.num_repaired_tokens)


def _drifted(point: DriftPoint) -> str:
    return f"{point.edit}, {point.num_repaired_tokens:,} tokens repaired: {point.mean_divergence:.1e} nats"


def _lowest(results: Results) -> float:
    """Where none at all is drawn, which has no place on a logarithmic scale."""
    found = [point.mean_divergence for point in results.drift] + [results.noise_divergence or 0.0]
    return min((divergence for divergence in found if divergence > 0), default=1.0) / 2


def _draw_drift(axes: Any, repaired: list[int], divergences: list[float], place: int) -> None:
    look = {
        "color": server_role(place).stand_in,
        "marker": MARKERS[place % 4],
        "markersize": 4.5,
        "linewidth": 1.8,
        "clip_on": False,
    }
    axes.plot(repaired, divergences, **look, gid=f"drift-{place}")


def _draw_noise(axes: Any, noise: float | None) -> None:
    if noise is None:
        return
    axes.axhline(noise, color=Role.DIM.stand_in, linewidth=1, linestyle=(0, (4, 3)))
    look = {"color": Role.DIM.stand_in, "va": "bottom", "xycoords": ("axes fraction", "data")}
    axes.annotate("two exact runs", (0, noise), xytext=(0, 3), textcoords="offset points", **look)


def _scale_drift(axes: Any, drift: list[DriftPoint]) -> None:
    axes.set_xscale("symlog", linthresh=16)
    axes.set_yscale("log")
    repaired = sorted({point.num_repaired_tokens for point in drift})
    axes.set_xticks(repaired, [_thousands(number) for number in repaired])
    axes.yaxis.set_major_formatter("{x:g}")
    _finish(axes, "tokens repaired behind the edit", "divergence from exact, nats")
