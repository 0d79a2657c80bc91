"""Reads a page as a browser would, as far as tests need it: every tag closed, ids, texts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "input", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    parts: list[str | Element] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    @property
    def children(self) -> list[Element]:
        return [part for part in self.parts if isinstance(part, Element)]

    @property
    def text(self) -> str:
        """Its own, as it is written."""
        return "".join(part for part in self.parts if isinstance(part, str))

    def all(self, tag: str = "", of_class: str = "") -> list[Element]:
        """Below this one, in order."""
        found: list[Element] = []
        for child in self.children:
            if tag in ("", child.tag) and (not of_class or of_class in child.classes):
                found.append(child)
            found += child.all(tag, of_class)
        return found

    @property
    def words(self) -> str:
        """Of it and all below, with single blanks."""
        return " ".join("".join(part if isinstance(part, str) else f"{part.words} " for part in self.parts).split())


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def read(html: str) -> Element:
    """AssertionError where a tag is not closed, or an id is not the only one."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root], f"<{reader.open[-1].tag}> is not closed"
    ids = Counter(element.attributes["id"] for element in reader.root.all() if "id" in element.attributes)
    assert not [id for id, number in ids.items() if number > 1]
    return reader.root


def by_id(page: Element, id: str) -> Element:
    (found,) = (element for element in page.all() if element.attributes.get("id") == id)
    return found
