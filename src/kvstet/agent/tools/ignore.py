"""What git is told to ignore, roughly: the patterns of ``.gitignore`` files, each for the folder that it lies in.

Understood are comments, negation, patterns for folders only, patterns with a path, ``*``, ``?``, ``[...]`` and ``**``
(gitignore(5)). Not read are the user's own list and ``.git/info/exclude``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

_ALWAYS = frozenset({".git", "node_modules", "__pycache__", ".venv"})
"""Nobody looks for anything in these."""

_MAX_STARS = 8
"""A pattern with more is left out: it can take for ever to match."""

_TOKEN = re.compile(r"\*\*/|/\*\*$|\*+|\?|\[[^\]/]+\]|.", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of a ``.gitignore``."""

    base: str
    """Folder that it holds for, with a slash at its end, or empty."""
    regex: re.Pattern[str] = field(repr=False)
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
            if path.startswith(rule.base) and rule.regex.fullmatch(path[len(rule.base) :]):
                return not rule.is_negated
        return False


def _rules(base: str, lines: Iterable[str]) -> Iterable[Rule]:
    for line in lines:
        pattern = line.rstrip()
        if not pattern or pattern.startswith("#") or pattern.count("*") > _MAX_STARS:
            continue
        is_negated = pattern.startswith("!")
        pattern = pattern.removeprefix("!").removeprefix("\\")
        only_folders = pattern.endswith("/")
        regex = glob_regex(pattern.rstrip("/"))
        if regex is not None:
            yield Rule(base, regex, is_negated, only_folders)


def glob_regex(pattern: str) -> re.Pattern[str] | None:
    """Matches whole paths as git does: a pattern without a slash, a name at any depth. None: it is no pattern."""
    is_anchored = "/" in pattern
    body = "".join(map(_translated, _TOKEN.findall(pattern.removeprefix("/"))))
    try:
        return re.compile(body if is_anchored else f"(?:.*/)?{body}", re.DOTALL)
    except re.error:
        return None


def _translated(token: str) -> str:
    match token:
        case "**/":
            return "(?:.*/)?"
        case "/**":
            return "/.*"
        case "?":
            return "[^/]"
        case _ if token.startswith("*"):
            return "[^/]*"
        case _ if len(token) > 1:
            return "[" + token[1:-1].replace("\\", "\\\\").replace("!", "^", token[1] == "!") + "]"
        case _:
            return re.escape(token)
