"""The report in a real browser: headless Chromium, driven through Playwright."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright
from tests.bench_report.browsers import OFFLINE, browser_path
from tests.bench_report.made_up_results import full_results

from kvstet.bench.report import write_report
from kvstet.bench.results import Results

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 667}


@pytest.fixture(scope="module")
def results() -> Results:
    """Of a full run; in the first session, a server said something that a page had better not believe."""
    made = full_results()
    made.scenarios[0].about = HOSTILE
    for run in made.scenarios[0].runs:
        for asked in run.asked:
            asked.verdict = asked.verdict and f"{asked.verdict} {HOSTILE}"
    return made


@pytest.fixture(scope="module")
def report(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(results, path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = browser_path()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OFFLINE)
        yield browser
        browser.close()


@dataclass
class Opened:
    page: Page
    complaints: list[str] = field(default_factory=list)
    """Whatever the console says, and errors of scripts."""
    asked_for: list[str] = field(default_factory=list)
    """Every URL."""


Open = Callable[..., Opened]


@pytest.fixture
def open_report(browser: Browser, report: Path) -> Iterator[Open]:
    """Opens it as someone with this screen and these preferences would."""
    contexts = []

    def opened(viewport: dict[str, int] = DESKTOP, scheme: str = "light", **options: object) -> Opened:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        told = Opened(page)
        page.on("console", lambda message: told.complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: told.complaints.append(str(error)))
        page.on("request", lambda request: told.asked_for.append(request.url))
        page.goto(report.as_uri())
        return told

    yield opened
    for context in contexts:
        context.close()


SCREENS = [
    pytest.param(DESKTOP, "light", id="light"),
    pytest.param(DESKTOP, "dark", id="dark"),
    pytest.param(PHONE, "light", id="phone"),
    pytest.param(PHONE, "dark", id="phone, dark"),
]


@pytest.mark.parametrize(("viewport", "scheme"), SCREENS)
def test_every_figure_is_shown_and_nothing_is_complained_of_or_fetched(
    open_report: Open, results: Results, report: Path, viewport: dict[str, int], scheme: str
) -> None:
    opened = open_report(viewport, scheme)
    page = opened.page
    sessions = [scenario for scenario in results.scenarios if scenario.kind in ("session", "growth")]
    num_rows_of = {"computed": len(sessions), "first-token": len(sessions), "rates": 4, "memory": 3}
    for section, number in num_rows_of.items():
        assert shown(page.locator(f"#{section} .scenario")) == number
        assert shown(page.locator(f"#{section} .row .track")) == number * len(results.servers)
    assert shown(page.locator(".chart svg")) == 3
    assert shown(page.locator(".strip")) == len(sessions)
    num_requests = sum(len(scenario.runs[0].asked) for scenario in sessions)
    assert shown(page.locator(".request")) == num_requests
    assert shown(page.locator(".request .computed")) == num_requests * len(results.servers)
    assert opened.complaints == []
    assert opened.asked_for == [report.as_uri()]
    assert page.evaluate("window.broken") is None


@pytest.mark.parametrize(("viewport", "scheme"), SCREENS)
def test_the_page_is_as_wide_as_the_screen(open_report: Open, viewport: dict[str, int], scheme: str) -> None:
    page = open_report(viewport, scheme).page
    for details in page.locator("summary").all():
        details.click()
    assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
    beyond = """[...document.querySelectorAll('main *')].filter(
        (each) => !each.closest('.scroller, svg, .tip') && each.getBoundingClientRect().right > innerWidth
    ).map((each) => each.outerHTML.slice(0, 90))"""
    assert page.evaluate(beyond) == []


def test_marks_in_pictures_say_what_they_are(open_report: Open, results: Results) -> None:
    page = open_report().page
    growth = next(scenario for scenario in results.scenarios if scenario.kind == "growth")
    titles = page.locator("#growth-growth-line-0 use title").all_text_contents()
    assert len(titles) == len(growth.runs[0].asked)
    assert titles[0].startswith("kvstet, 1,000 tokens: ")
    assert page.locator("#waiting-dots-1 use title").count() == sum(
        len(scenario.runs[0].asked) for scenario in results.scenarios if scenario.kind == "session"
    )


def test_pointing_at_a_bar_shows_its_numbers_and_the_verdict(open_report: Open, results: Results) -> None:
    page = open_report().page
    request = page.locator("#strip-2 .request").nth(3)
    tip = request.locator(".tip")
    assert not tip.is_visible()
    request.hover()
    assert tip.is_visible()
    words = tip.inner_text()
    assert "turn 4" in words and "lower bound" in words
    verdicts = {run.asked[3].verdict for run in results.scenarios[1].runs}
    assert any(verdict and verdict in words for verdict in verdicts)
    page.mouse.move(0, 0)
    assert not tip.is_visible()


def test_the_keyboard_walks_along_a_strip(open_report: Open) -> None:
    page = open_report().page
    requests = page.locator("#strip-1 .request")
    requests.first.focus()
    assert requests.first.locator(".tip").is_visible()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert [requests.nth(place).locator(".tip").is_visible() for place in range(4)] == [False, False, True, False]
    page.keyboard.press("End")
    assert requests.last.locator(".tip").is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".tip:visible").count() == 0


def test_a_strip_is_one_stop_of_the_tabulator(open_report: Open) -> None:
    page = open_report().page
    page.locator("#strip-1 .request").first.focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_a_tap_shows_the_verdict_on_a_phone(open_report: Open) -> None:
    page = open_report(PHONE, has_touch=True, is_mobile=True).page
    request = page.locator("#strip-1 .request").nth(2)
    request.tap()
    tip = request.locator(".tip")
    assert "Computed" in tip.inner_text()
    box = tip.bounding_box()
    assert box is not None
    assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]


def test_text_of_a_server_is_shown_and_not_run(open_report: Open) -> None:
    page = open_report().page
    page.locator("#strip-1 .request").first.hover()
    assert HOSTILE in page.locator("#strip-1 .tip:visible").inner_text()
    assert HOSTILE in page.locator("#strip-1").inner_text()
    assert page.evaluate("window.broken") is None


def test_the_button_turns_light_and_dark_and_pictures_follow(open_report: Open) -> None:
    page = open_report(scheme="light").page
    label = page.locator(".chart text").first
    light = background(page), colour(label)
    page.locator("#theme").click()
    dark = background(page), colour(label)
    assert light[0] == "rgb(255, 255, 255)"
    assert dark[0] == "rgb(15, 19, 23)"
    assert light[1] != dark[1]
    page.locator("#theme").click()
    assert (background(page), colour(label)) == light
    assert background(open_report(scheme="dark").page) == "rgb(15, 19, 23)"


def test_paper_is_light_and_shows_all_tables(open_report: Open) -> None:
    page = open_report(scheme="dark").page
    page.emulate_media(media="print")
    assert background(page) == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(22, 25, 29)"
    assert not page.locator("#theme").is_visible()
    assert not page.locator("nav").is_visible()
    tables = page.locator("details table")
    assert shown(tables) == tables.count() > 10
    page.locator(".request").first.focus()
    assert page.locator(".tip:visible").count() == 0


def test_it_prints(open_report: Open) -> None:
    opened = open_report()
    pdf = opened.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and pdf.count(b"/Type /Page\n") > 5
    assert opened.page.locator("details[open]").count() == 0, "what was opened to be printed is closed again"
    assert opened.complaints == []


def test_the_numbers_can_be_saved(open_report: Open, results: Results, tmp_path: Path) -> None:
    opened = open_report(accept_downloads=True)
    with saved(opened.page, tmp_path / "saved.json") as link:
        link.click()
    assert msgspec.json.decode((tmp_path / "saved.json").read_bytes(), type=Results) == results
    assert opened.complaints == []


@contextmanager
def saved(page: Page, path: Path) -> Iterator[Locator]:
    with page.expect_download() as download:
        yield page.locator("#download")
    assert download.value.suggested_filename == "kvstet-bench.json"
    download.value.save_as(path)


def shown(figures: Locator) -> int:
    """How many of them are not hidden, and have an area."""
    return figures.evaluate_all(
        """(all) => all.filter((each) => each.checkVisibility()).map((each) => each.getBoundingClientRect())
        .filter((box) => box.width && box.height).length"""
    )


def background(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.documentElement).backgroundColor")


def colour(text: Locator) -> str:
    return text.evaluate("(each) => getComputedStyle(each).fill")
