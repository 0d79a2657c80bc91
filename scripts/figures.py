#!/usr/bin/env python3
"""The README's pictures and its table of the bench, from docs/figures/results.json (``make figures``).

That file is what ``kvstet bench --json docs/figures/results.json`` wrote; ``make figures BENCH=1`` runs it again first.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from kvstet.bench.report import wording
from kvstet.bench.report.charts import drift_chart, growth_chart
from kvstet.bench.report.comparison import Compared, Score, compare
from kvstet.bench.report.drawing import Titles, picture
from kvstet.bench.report.spread import Spread
from kvstet.bench.report.themes import DARK, LIGHT, Role, Theme, server_role
from kvstet.bench.results import Results

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"
RESULTS = FOLDER / "results.json"
README = ROOT / "README.md"
MIN_PAIRS = 5
"""A row of the table is of so many at least."""

BEGIN, END = "<!-- bench table -->", "<!-- end of bench table -->"


def main() -> int:
    if not RESULTS.exists():
        print(f"There is no {RESULTS.relative_to(ROOT)}: make figures BENCH=1 makes it.", file=sys.stderr)
        return 1
    results = msgspec.json.decode(RESULTS.read_bytes(), type=Results)
    for name, svg in figures(results).items():
        (FOLDER / name).write_text(svg, encoding="utf-8")
        print(FOLDER / name)
    text = README.read_text(encoding="utf-8")
    if BEGIN not in text:
        print(f"README.md has no line {BEGIN}, so it was left as it is.", file=sys.stderr)
        return 0
    README.write_text(with_table(text, table(results)), encoding="utf-8")
    return 0


def figures(results: Results) -> dict[str, str]:
    """SVG by file name, for light pages and for dark ones."""
    drawn = {
        f"{name}-{end}.svg": svg
        for end, theme in (("light", LIGHT), ("dark", DARK))
        for name, svg in _drawn(results, theme)
    }
    return {name: f"{svg}\n" for name, svg in drawn.items() if svg is not None}


def table(results: Results) -> str:
    """Markdown: each session on kvstet and on the first other server, medians over pairs, of which there are enough."""
    mine, theirs = (server.name for server in results.servers[:2])
    head = ["", "prompt tokens", "lower bound", f"{mine} computed", f"{theirs} computed"]
    head += [f"{mine}, first token", f"{theirs}, first token", "ratio of first tokens"]
    lines = [
        head,
        ["---", *["---:"] * (len(head) - 1)],
        *(_row(each) for each in compare(results) if _num_pairs(each) >= MIN_PAIRS),
    ]
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def with_table(text: str, table: str) -> str:
    """The text, with the table between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"README.md has no line {END}.")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def _drawn(results: Results, theme: Theme) -> list[tuple[str, str | None]]:
    growing = [scenario for scenario in results.scenarios if scenario.kind == "growth"]
    return [
        ("computed", computed_chart(results, theme)),
        *(("first-token", growth_chart(results, scenario, theme)) for scenario in growing[:1]),
        ("drift", drift_chart(results, theme)),
    ]


def computed_chart(results: Results, theme: Theme) -> str | None:
    """Computed tokens as a part of each session's prompt tokens, with the lower bound as a mark on each bar."""
    compared = [each for each in compare(results) if all(_part(score) is not None for score in each.scores[:2])]
    if not compared:
        return None

    def draw(axes: Any) -> Titles:
        for place, server in enumerate(results.servers[:2]):
            heights = [row + 0.19 - 0.38 * (1 - place) for row in range(len(compared))]
            parts = [_part(each.scores[place]) or 0.0 for each in compared]
            look = {"height": 0.34, "color": server_role(place).stand_in, "linewidth": 0}
            axes.barh(heights, parts, label=server.name, **look)
            bounds = [_share(each.scores[place].bound, each.scores[place].prompt) or 0.0 for each in compared]
            axes.scatter(bounds, heights, marker="|", s=70, linewidths=1.6, color=Role.INK.stand_in, zorder=3)
        axes.set_yticks(range(len(compared)), [each.scenario.title for each in compared])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel("prompt tokens that were computed, %; the stroke is the exact lower bound")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="both", length=0)
        axes.tick_params(axis="y", labelcolor=Role.INK.stand_in)
        look = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 2}
        axes.legend(frameon=False, labelcolor="linecolor", handlelength=0.8, **look)
        return {}

    says = "; ".join(_said(each) for each in compared)
    height = 0.7 + 0.38 * len(compared)
    return picture(draw, name="computed", says=says, theme=theme, width_inches=8, height_inches=height)


def _num_pairs(each: Compared) -> int:
    ratio = each.scores[1].times_first_token
    return len(ratio.values) if ratio is not None else 0


def _row(each: Compared) -> list[str]:
    mine, theirs = each.scores[:2]
    return [
        each.scenario.title,
        *(wording.count(_median(spread)) for spread in (mine.prompt, mine.bound, mine.computed, theirs.computed)),
        *(wording.seconds(_median(score.first_token)) for score in (mine, theirs)),
        wording.times_with_range(theirs.times_first_token),
    ]


def _said(each: Compared) -> str:
    parts = [f"{score.server} {_part(score):.0f}%" for score in each.scores[:2]]
    return f"{each.scenario.title}: {', '.join(parts)}"


def _part(score: Score) -> float | None:
    return _share(score.computed, score.prompt)


def _share(part: Spread | None, whole: Spread | None) -> float | None:
    return 100 * part.median / whole.median if part is not None and whole is not None and whole.median else None


def _median(spread: Spread | None) -> float | None:
    return spread.median if spread is not None else None


if __name__ == "__main__":
    sys.exit(main())
