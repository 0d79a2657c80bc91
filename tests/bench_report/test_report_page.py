"""The report's HTML, looked at without a browser."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from tests.bench_report.made_up_results import KVSTET, PEER, full_results
from tests.bench_report.markup import Element, by_id, read

from kvstet.bench.report import report_html, write_report
from kvstet.bench.report.page import TEMPLATE
from kvstet.bench.report.themes import DARK, LIGHT, Role
from kvstet.bench.report.wording import UNKNOWN
from kvstet.bench.results import Results, Scenario, Server
from kvstet.replay.results import Asked, Run

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"


@pytest.fixture(scope="module")
def results() -> Results:
    return full_results()


@pytest.fixture(scope="module")
def html(results: Results) -> str:
    return report_html(results)


@pytest.fixture(scope="module")
def page(html: str) -> Element:
    return read(html)


def test_a_full_run_is_a_file_of_less_than_two_megabytes(results: Results, tmp_path: Path) -> None:
    write_report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 2_000_000


def test_nothing_is_fetched_from_anywhere(page: Element, html: str) -> None:
    assert not page.all("link") and not page.all("img") and not page.all("iframe")
    assert not [element for element in page.all() if "src" in element.attributes]
    assert [link for link in page.all("a") if not link.attributes["href"].startswith("#")] == []
    assert not re.findall(r"@import|url\((?!#)", html)


def test_headings_go_down_step_by_step(page: Element) -> None:
    levels = [int(element.tag[1]) for element in page.all() if re.fullmatch(r"h[1-6]", element.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_scenario_is_in_every_section_that_is_about_it(page: Element, results: Results) -> None:
    sessions = [scenario.title for scenario in results.scenarios if scenario.kind in ("session", "growth")]
    for section in ("computed", "requests"):
        titles = [heading.words for heading in by_id(page, section).all("h3")]
        assert titles == sessions
    assert [heading.words for heading in by_id(page, "first-token").all("li", "scenario")[0].all("h3")] == sessions[:1]
    assert [heading.words for heading in by_id(page, "rates").all("h3")] == [
        "Decode 1 stream",
        "Decode 4 streams",
        "Decode 8 streams",
        "Prefill 4096 token prompt",
    ]
    assert [heading.words for heading in by_id(page, "memory").all("h3")] == [
        "Memory idle",
        "Memory peak",
        "Memory cached token",
    ]


def test_pictures_and_requests_can_be_told_without_seeing_them(page: Element) -> None:
    pictures = page.all("svg")
    assert len(pictures) == 3
    assert all(picture.attributes["role"] == "img" and picture.attributes["aria-label"] for picture in pictures)
    for request in page.all("li", "request"):
        told = by_id(page, request.attributes["aria-labelledby"]).words
        assert KVSTET in told and PEER in told and "computed" in told


def test_the_numbers_in_the_page_are_the_results(page: Element, results: Results) -> None:
    assert msgspec.json.decode(by_id(page, "results").text, type=Results) == results


def test_the_command_and_all_versions_are_told(page: Element, results: Results) -> None:
    made = by_id(page, "made").words
    for words in (results.command, results.machine.processor, results.model.name):
        assert words in made
    for server in results.servers:
        assert server.version in made and server.command in made


def test_where_it_does_worse_is_told(page: Element) -> None:
    told = by_id(page, "losses").words
    assert "Memory , peak: 2,731 MiB, llama.cpp's server 1,1" in told
    assert "By less than 2%: " in told


def test_text_of_servers_and_models_stays_text(results: Results) -> None:
    hostile = msgspec.convert(msgspec.to_builtins(results), Results)
    for scenario in hostile.scenarios:
        scenario.title = scenario.about = HOSTILE
        for run in scenario.runs:
            for asked in run.asked:
                asked.verdict = asked.label = HOSTILE
    hostile.scenarios[0].runs[0].failure = hostile.scenarios[0].runs[1].asked[0].error = HOSTILE
    hostile.servers[1].version = hostile.servers[1].command = hostile.model.name = hostile.command = HOSTILE
    for run in (run for scenario in hostile.scenarios for run in scenario.runs if run.server == PEER):
        run.server = HOSTILE
    hostile.servers[1].name = HOSTILE
    page = read(report_html(hostile))
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert HOSTILE in by_id(page, "requests").words
    assert msgspec.json.decode(by_id(page, "results").text, type=Results) == hostile


def test_what_failed_is_told_and_not_compared(results: Results) -> None:
    failing = msgspec.convert(msgspec.to_builtins(results), Results)
    append, clock = failing.scenarios[0], failing.scenarios[5]
    for run in append.runs:
        if run.server == PEER:
            run.failure = "The server died: signal 9"
    first_of_peer = next(run for run in clock.runs if run.server == PEER)
    first_of_peer.asked[3] = Asked(label="turn 4", error="400: too long")
    page = read(report_html(failing))
    told = by_id(page, "failures").words
    assert "Append , llama.cpp's server, pair 1: The server died: signal 9" in told
    assert "Clock in the system prompt , llama.cpp's server, pair 1, turn 4: 400: too long" in told
    assert "Without append, of which not every server has numbers." in page.words


def bare(**changes: object) -> Results:
    """Results of a run that nothing is in."""
    full = msgspec.to_builtins(full_results(num_pairs=1))
    empty = {"scenarios": [], "drift": [], "noise_divergence": None}
    return msgspec.convert({**full, **empty, **changes}, Results)


def test_results_of_nothing_are_a_page_all_the_same() -> None:
    page = read(report_html(bare()))
    assert "Nothing that can be compared was measured" in page.words
    assert "There are no scenarios in these results." in page.words
    assert not page.all("svg")


def test_a_server_alone_is_compared_with_nobody() -> None:
    results = full_results(num_pairs=1)
    del results.servers[1]
    for scenario in results.scenarios:
        scenario.runs = [run for run in scenario.runs if run.server == KVSTET]
    page = read(report_html(results))
    assert PEER not in page.words
    assert "there is no spread to tell" in page.words
    assert len(page.all("div", "tip")) == len(page.all("li", "request")) > 0
    assert not [element for element in page.all() if element.attributes.get("id") == "losses"]


def test_numbers_that_nobody_knows_are_dashes() -> None:
    scenario = Scenario(name="append", title="Append", about="", kind="session")
    scenario.runs = [Run(server=name, asked=[Asked(label="turn 1")]) for name in (KVSTET, PEER)]
    growth = Scenario(name="growth", title="Growth", about="", kind="growth", runs=scenario.runs)
    rate = Scenario(name="decode", title="Decode", about="", kind="rate", runs=[Run(server=KVSTET)])
    results = bare()
    results.scenarios = [scenario, growth, rate]
    page = read(report_html(results))
    assert f"kvstet {UNKNOWN} tokens: {UNKNOWN} computed" in page.all("div", "tip")[0].words
    assert not page.all("svg")
    assert {row.all("span", "number")[0].words for row in page.all("li", "row")} == {UNKNOWN}


def test_three_servers_of_which_one_tells_nothing_are_shown_side_by_side() -> None:
    results = full_results(num_pairs=2)
    results.servers.append(Server(name="http://127.0.0.1:1", version="", command="http://127.0.0.1:1"))
    for scenario in results.scenarios:
        num = max(len(run.asked) for run in scenario.runs)
        asked = [Asked(label=f"turn {n + 1}", first_token_seconds=1.5) for n in range(num)]
        scenario.runs.append(Run(server="http://127.0.0.1:1", asked=asked))
    page = read(report_html(results))
    assert page.all("h1")[0].words.count(",") >= 1
    assert "http://127.0.0.1:1" not in page.all("h1")[0].words
    assert len(page.all("li", "row")) % 3 == 0


def test_without_matplotlib_the_report_says_what_is_missing(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = read(report_html(results))
    assert [missing.words for missing in page.all("p", "missing")] == [
        "This picture needs matplotlib: pip install 'kvstet[plot]'."
    ] * 3
    assert page.all("li", "request")


@pytest.mark.parametrize("role", list(Role))
def test_pictures_have_the_colours_of_the_page(role: Role) -> None:
    style = (TEMPLATE / "style.css").read_text()
    assert f"--{role.value}: light-dark({LIGHT[role]}, {DARK[role]});" in style


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("role", [Role.INK, Role.DIM, *(role for role in Role if role.value.startswith("server"))])
def test_text_stands_out_from_the_paper(theme: dict[Role, str], role: Role) -> None:
    """At least 4.5 to 1, as WCAG 2 asks for in AA (success criterion 1.4.3)."""
    lighter, darker = sorted((luminance(theme[role]), luminance(theme[Role.PAPER])), reverse=True)
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(colour: str) -> float:
    """Relative, as WCAG 2 defines it."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
