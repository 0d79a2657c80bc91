"""The documentation: its links lead somewhere, and it names every option and every endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import typer.main
from starlette.routing import Route

from kvstet.api.app import create_app
from kvstet.api.ports import Models
from kvstet.cli.main import app
from kvstet.config import ServerOptions

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.M | re.S)
HEADING = re.compile(r"^#{1,6} (.+)$", re.M)


def links(page: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        if "://" not in target:
            yield target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings; the second of the same name is not linked to."""
    headings = HEADING.findall(FENCE.sub("", page.read_text()))
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", heading).lower()).replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_a_file_and_to_a_heading_in_it(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in seen and page.suffix == ".md":
            seen.add(page)
            waiting += [(page.parent / link.partition("#")[0]).resolve() for link in links(page) if link[0] != "#"]
    assert set(PAGES) <= seen


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for each, inner in command.commands.items():
            yield from commands(inner, f"{name} {each}")
    else:
        yield name, command


COMMANDS = dict(commands(typer.main.get_command(app), "kvstet"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_every_option_is_documented(name: str) -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    group, _, word = name.rpartition(" ")
    # The commands of a group may stand in a table of the group.
    assert name in text or (group in text and f"| `{word}` |" in text)
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and not parameter.hidden:
            longest = max(parameter.opts, key=len)
            assert re.search(rf"{re.escape(longest)}(?![\w-])", text), longest


def test_every_endpoint_is_documented() -> None:
    text = (ROOT / "docs" / "endpoints.md").read_text()
    # No request is made, so no model is asked.
    routes = [route for route in create_app(cast("Models", None), ServerOptions()).routes if isinstance(route, Route)]
    assert len(routes) > 30
    for route in routes:
        path = re.sub(r"\{(\w+)(?::path)?\}", lambda match: match[1].upper(), route.path)
        assert path in text, path
