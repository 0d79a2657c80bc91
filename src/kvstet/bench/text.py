"""What the conversations of the suite are about: real code, found on this machine."""

from __future__ import annotations

import random
import sysconfig
from functools import cache
from pathlib import Path

CHARACTERS_PER_TOKEN = 3.0
"""Of code, roughly, where nobody has measured."""

_MIN_FILE_CHARACTERS = 4_000


class Text:
    """Passages of Python's standard library. The same seed gives the same passages, on the same Python."""

    def __init__(self, seed: str, characters_per_token: float = CHARACTERS_PER_TOKEN) -> None:
        self.seed = seed
        self._random = random.Random(seed)
        self._characters_per_token = characters_per_token

    def __repr__(self) -> str:
        return f"Text({self.seed!r})"

    def code(self, num_tokens: int) -> str:
        """Whole lines, of one or more files, of about so many tokens."""
        wanted = int(num_tokens * self._characters_per_token)
        passage = ""
        while len(passage) < wanted:
            passage += self._passage(wanted - len(passage))
        return passage

    def unique(self, num_tokens: int) -> str:
        """The same, with a first line that no other passage has."""
        return f"# {self.word()} {self.word()}\n{self.code(num_tokens)}"

    def _passage(self, num_characters: int) -> str:
        source = self._random.choice(_sources())
        start = source.index("\n", self._random.randrange(len(source) // 2)) + 1
        stop = source.find("\n", start + num_characters)
        return source[start : stop + 1 if stop >= 0 else len(source)]

    def name(self) -> str:
        """Of a file, as a tool would be asked for it."""
        return f"{self.word()}_{self.word()}.py"

    def word(self) -> str:
        """One of eight letters that no other text has."""
        return "".join(self._random.choices("abcdefghijklmnopqrstuvwxyz", k=8))


@cache
def _sources() -> tuple[str, ...]:
    """The files that are long enough, in an order that does not depend on the file system."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py")))
    return tuple(text for text in texts if len(text) >= _MIN_FILE_CHARACTERS)
