"""Text from models, files and servers, made fit for a terminal.

Control characters move the cursor, hide text or answer for the user, and directional marks reorder it: what is asked
about has to look like what it is.
"""

from __future__ import annotations

import re
import unicodedata

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def shown(text: str) -> str:
    """The text with such characters spelt out; tabs and line ends stay."""
    text = _SURROGATE.sub("\ufffd", text.replace("\r\n", "\n"))
    return _UNSAFE.sub(_spelt, text)


def one_line(text: str, max_characters: int = 120) -> str:
    """The same as one line, cut to a length."""
    line = " ".join(shown(text).split())
    return line if len(line) <= max_characters else f"{line[: max_characters - 1]}…"


def _spelt(match: re.Match[str]) -> str:
    character = match[0]
    if character < "\x20":
        return chr(0x2400 + ord(character))
    return f"<{unicodedata.name(character, f'U+{ord(character):04X}').lower()}>"
