"""What git is told to ignore, roughly: the patterns of ``.gitignore`` files, each for the folder that it lies in.

Understood are comments, negation, patterns for folders only, patterns with a path, ``*``, ``?``, ``[...]`` and ``**``
(gitignore(5)). Not read are the user's own list and ``.git/info/exclude``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import translate

_ALWAYS = frozenset({".git", "node_modules", "__pycache__", ".venv"})
"""Nobody looks for anything in these."""

_ANY = re.compile(".*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern for whole paths: ``*``, ``?`` and ``[...]`` stand for a part of a name, ``**`` for any row of folders.

    Patterns and names come from anybody, so none may take long: parts are tried name by name, and `fnmatch` never goes
    back over what a star has taken.
    """

    parts: tuple[re.Pattern[str] | None, ...] = field(repr=False)
    """One for each name of the path; None: for any number of them."""

    @staticmethod
    def of(pattern: str) -> Glob:
        """As git reads it: without a slash it is of a name, at any depth."""
        words = pattern.removeprefix("/").split("/")
        parts = [None if word == "**" else re.compile(translate(word)) for word in words]
        # At the end, ** is all that lies in a folder, and not the folder.
        behind = [_ANY] if words[-1] == "**" else []
        return Glob((*([] if "/" in pattern else [None]), *parts, *behind))

    def fits(self, path: str) -> bool:
        names = path.split("/")
        # So many names may be those of the parts so far.
        taken = {0}
        for part in self.parts:
            if part is None:
                taken = set(range(min(taken, default=len(names) + 1), len(names) + 1))
            else:
                taken = {place + 1 for place in taken if place < len(names) and part.fullmatch(names[place])}
        return len(names) in taken


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a ``.gitignore``."""

    base: str
    """Folder that it holds for, with a slash at its end, or empty."""
    glob: Glob
    """Of the path from that folder on."""
    is_negated: bool
    only_folders: bool


@dataclass(frozen=True, slots=True)
class Ignored:
    """The rules of a folder and of those above it; later ones override."""

    rules: tuple[Rule, ...] = ()

    def with_file(self, base: str, text: str) -> Ignored:
        """And those of this folder's ``.gitignore``."""
        return Ignored((*self.rules, *_rules(base, text.splitlines())))

    def has(self, path: str, *, is_folder: bool) -> bool:
        """Whether a path, which begins at the workspace, is left out."""
        if path.rpartition("/")[2] in _ALWAYS:
            return True
        for rule in reversed(self.rules):
            if rule.only_folders and not is_folder:
                continue
            if path.startswith(rule.base) and rule.glob.fits(path[len(rule.base) :]):
                return not rule.is_negated
        return False


def _rules(base: str, lines: Iterable[str]) -> Iterable[Rule]:
    for line in lines:
        pattern = line.rstrip()
        if not pattern or pattern.startswith("#"):
            continue
        is_negated = pattern.startswith("!")
        pattern = pattern.removeprefix("!").removeprefix("\\")
        only_folders = pattern.endswith("/")
        yield Rule(base, Glob.of(pattern.rstrip("/")), is_negated, only_folders)
