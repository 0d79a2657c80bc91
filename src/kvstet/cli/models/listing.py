"""Which models a server is to serve, under which names and from which files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kvstet.cache.fingerprint import PART
from kvstet.cli.models.configuration import BadModels
from kvstet.cli.models.hub import PREFIX
from kvstet.config import Lora


@dataclass(frozen=True, slots=True)
class Source:
    """A model as the user named it."""

    path: str
    """A file, or a name on a hub."""
    name: str | None = None
    """None: that of its file."""


def source_of(text: str) -> Source:
    """``PATH`` or ``NAME=PATH``."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or ":" in name or not name.strip() or Path(text).exists():
        return Source(text)
    return Source(path, name.strip())


def located(sources: Sequence[Source], fetch: Callable[[str], Path]) -> list[tuple[str | None, Path]]:
    """Name and file of each model; a model alone that was given no name has None. ``fetch`` gets those of a hub.

    Raises BadModels where two have one name, and what ``fetch`` raises.
    """
    paths = [
        fetch(source.path) if source.path.startswith(PREFIX) else Path(source.path).expanduser() for source in sources
    ]
    if len(sources) == 1:
        return [(sources[0].name, paths[0])]
    names = [source.name or stem(path) for source, path in zip(sources, paths, strict=True)]
    check_unique(names)
    return list(zip(names, paths, strict=True))


def check_unique(names: Sequence[str]) -> None:
    """BadModels for a name of two models."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise BadModels(f"Two models are called {name!r}: give one of them another name, as in --model NAME=PATH.")


def stem(path: Path) -> str:
    """A file's name without its ending, and without the number of its part."""
    return PART.sub("", path.name) if PART.search(path.name) else path.stem


def lora_of(text: str) -> Lora:
    """``FILE`` or ``FILE:SCALE``."""
    path, colon, scale = text.rpartition(":")
    try:
        return Lora(Path(path), float(scale)) if colon else Lora(Path(text))
    except ValueError:
        return Lora(Path(text))
