"""The page: the results as `kvstet.bench.report`'s other modules see them, put into its template."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup

from kvstet.bench.report import charts, wording
from kvstet.bench.report.comparison import compare, total
from kvstet.bench.report.headline import facts, sentence
from kvstet.bench.report.losses import losses
from kvstet.bench.report.measures import measured
from kvstet.bench.report.strips import PARTS, strips
from kvstet.bench.report.themes import VARIABLES
from kvstet.bench.results import Results
from kvstet.errors import InvalidRequest

WORDINGS = ("count", "seconds", "duration", "size", "share", "times", "times_with_range", "in_unit")
"""Filters of the template."""
TEMPLATE = files("kvstet.bench.report") / "template"


@dataclass(frozen=True, slots=True)
class Failure:
    """A run that did not come to its end, or a request without a reply."""

    scenario: str
    server: str
    pair: int
    request: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Chart:
    title: str
    says: str
    svg: Markup | None
    """None: it cannot be drawn here."""
    missing: str = ""
    """Why not."""


def write_report(results: Results, path: Path) -> None:
    """Write the report of these results as one HTML file. OSError if it cannot be written."""
    path.write_text(report_html(results), encoding="utf-8")


def report_html(results: Results) -> str:
    """One file that needs nothing else: no network, no fonts, no other scripts.

    What comes from servers and models is escaped, and a content policy keeps out what is not the page's own.
    """
    compared, others = compare(results), measured(results)
    totals, lost = total(results, compared), losses(compared, others)
    script = (TEMPLATE / "script.js").read_text(encoding="utf-8")
    return _template().render(
        results=results,
        servers=[server.name for server in results.servers],
        sentence=sentence(totals),
        facts=facts(totals, compared),
        totals=totals,
        compared=compared,
        losses=[loss for loss in lost if not loss.is_slight],
        slight_losses=[loss for loss in lost if loss.is_slight],
        rates=[each for each in others if each.quantity.unit.endswith(("/s", "per second"))],
        sizes=[each for each in others if each.quantity.unit == "bytes"],
        rest=[each for each in others if not each.quantity.unit.endswith(("/s", "per second", "bytes"))],
        strips=strips(results),
        parts=PARTS,
        waiting=_waiting(results),
        drift=_drift(results),
        failures=_failures(results),
        num_pairs=_num_pairs(results),
        date=time.strftime("%-d %B %Y, %H:%M UTC", time.gmtime(results.began_wall)),
        json=_embedded(results),
        style=Markup((TEMPLATE / "style.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (TEMPLATE / name).read_text(encoding="utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    untyped: Any = environment
    untyped.filters.update({name: getattr(wording, name) for name in WORDINGS})
    return environment.get_template("report.html")


def _embedded(results: Results) -> Markup:
    """JSON that no text in it can break out of: an opening angle bracket is written as JSON's escape of it."""
    return Markup(msgspec.json.encode(results).decode().replace("<", "\\u003c"))


def _waiting(results: Results) -> list[Chart]:
    growing = [scenario for scenario in results.scenarios if scenario.kind == "growth"]
    drawn = [
        *(
            _chart(each.title, each.about, lambda each=each: charts.growth_chart(results, each, VARIABLES))
            for each in growing
        ),
        _chart(
            "All sessions",
            "Each mark is a request of the pairs shown below.",
            lambda: charts.waiting_chart(results, VARIABLES),
        ),
    ]
    return [chart for chart in drawn if chart is not None]


def _drift(results: Results) -> Chart | None:
    return _chart(
        "Drift against repair",
        "How far predictions from state that was moved are from those of a cold run (mean Kullback-Leibler divergence,"
        " nats), by how many tokens behind the edit were computed again. Below the dashed line lies what two exact runs"
        " differ by: less cannot be told from nothing.",
        lambda: charts.drift_chart(results, VARIABLES),
    )


def _chart(title: str, says: str, draw: Callable[[], str | None]) -> Chart | None:
    """None where there is nothing to draw."""
    try:
        svg = draw()
    except InvalidRequest as error:
        return Chart(title, says, None, str(error))
    return Chart(title, says, Markup(svg)) if svg is not None else None


def _failures(results: Results) -> list[Failure]:
    found: list[Failure] = []
    for scenario in results.scenarios:
        for run in scenario.runs:
            pair = run.repetition + 1
            found += [
                Failure(scenario.title, run.server, pair, asked.label, asked.error)
                for asked in run.asked
                if asked.error
            ]
            if run.failure is not None:
                found.append(Failure(scenario.title, run.server, pair, None, run.failure))
    return found


def _num_pairs(results: Results) -> int:
    """The most that a scenario has."""
    return max((len({run.repetition for run in scenario.runs}) for scenario in results.scenarios), default=0)
