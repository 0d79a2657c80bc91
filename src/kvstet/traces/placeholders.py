"""Words for words: what a text says is gone, and what two texts have in common stays, to the character.

A *token* is a row of letters and digits. Within it each character is replaced by another of its kind (small, capital, a
digit, other letters of as many bytes), by a permutation that depends on the key and on all characters of the token
before it. So equal tokens stay equal and different ones different, two that begin alike do so for just as many
characters, and the length stays the same in characters and in bytes. Everything between tokens stays as it is.

Left as they are: the words of `kvstet.edits.vocabulary` and those below, a 0 or 1 at the beginning of a number, letters
behind digits that tell a time (``22T10``, ``5pm``), and the character behind a backslash, so that JSON within a text
stays JSON. A word that would by chance become one that is kept becomes another one.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections import OrderedDict
from functools import cache
from hashlib import blake2b, shake_256
from string import ascii_lowercase, ascii_uppercase, digits
from struct import Struct
from unicodedata import category

from kvstet.edits.vocabulary import VOCABULARY

JSON_WORDS = frozenset({"true", "false", "null"})
API_WORDS = frozenset({"error", "id", "redacted", "session"})
"""By which a result is known to have failed, Claude Code's ``metadata.user_id`` tells the session, and it is seen what
was redacted already."""
KEPT = VOCABULARY | JSON_WORDS | API_WORDS

KEPT_NAMES = frozenset(
    {"cache_control", "data", "encrypted_content", "file_data", "image_url", "prompt_cache_breakpoint", "signature"}
)
"""Names of fields which providers do not count as text, wherever they stand."""

_BEHIND_DIGITS = ("t", "z", "e", "k", "am", "a", "pm", "p", "st", "nd", "rd", "th", "m")

KEY_BYTES = 32

_TOKEN = re.compile(r"\\.|data:[\w.+-]+/[\w.+-]+;base64,|[^\W_]+", re.DOTALL)
_RUN = re.compile(r"(?i:error)|[^\W\d_]+?(?=(?i:error)|[\W\d_]|$)|\d+|.", re.DOTALL)
_JSON_BEGINS = re.compile(r"\s*[\[{\"]")
_LITERAL = re.compile(r'"((?:[^"\\]|\\.)*)("?)(?=\s*(:)?)', re.DOTALL)
_WORD = re.compile(r"[^\W\d_]{2,}")
_UNIT = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|.", re.DOTALL)
_BASE64_HEAD = re.compile(r"data:[\w/+.;=-]*,")

_CODE_LETTERS = 2
_MAX_KEPT_CHARACTERS = 1 << 25
_MAX_KEPT_TOKENS = 1 << 18

_NUMBERS = Struct(f"{len(ascii_lowercase)}H")
"""By which the letters of an alphabet are shuffled."""
_FIRST_DIGITS = "23456789"
_BLOCKS = (range(0x80, 0x800), range(0x800, 0xD800), range(0xF900, 0x10000), range(0x10000, 0x40000))
"""Of characters that take as many bytes as each other in UTF-8; the private and the surrogate ones are left out."""


class Placeholders:
    """Replaces texts under one key; whoever has it can find out which words stood there."""

    def __init__(self, key: bytes) -> None:
        self._key = blake2b(key, digest_size=KEY_BYTES).digest()
        self._tokens: dict[str, str] = {}
        self._texts: OrderedDict[str, str] = OrderedDict()
        """The latest: every request repeats its conversation."""
        self._num_characters = 0

    def __repr__(self) -> str:
        return f"Placeholders({len(self._tokens)} words, {len(self._texts)} texts)"

    def text(self, text: str) -> str:
        """Of the same length."""
        known = self._texts.get(text)
        if known is not None:
            self._texts.move_to_end(text)
            return known
        return self._remembered(text, _TOKEN.sub(lambda match: self._token(match[0]), text))

    def name(self, name: str) -> str:
        """Of a field in JSON whose names are not the API's."""
        return name if name in KEPT_NAMES else self.text(name)

    def json_text(self, text: str) -> str:
        """Of a text that should be JSON, cut off or not: strings and keys become what they would become alone, in the
        same spelling; numbers stay."""
        if not _JSON_BEGINS.match(text):
            return self.text(text)
        parts: list[str] = []
        place = 0
        for match in _LITERAL.finditer(text):
            said = match[1] if match[3] and match[1] in KEPT_NAMES else self._spelt(match[1])
            parts += [self._outside(text[place : match.start()]), '"', said, match[2]]
            place = match.end()
        return "".join([*parts, self._outside(text[place:])])

    def opaque(self, content: str) -> str:
        """Base64, or what nobody reads: of the same length, and equal for equal ones."""
        head = _BASE64_HEAD.match(content)
        start = head.end() if head else 0
        length = len(content.rstrip("=")) - start
        made = shake_256(self._key + content.encode("utf-8", "surrogatepass")).digest(length)
        return content[:start] + b64encode(made).decode()[:length] + content[start + length :]

    def _remembered(self, text: str, replaced: str) -> str:
        self._texts[text] = replaced
        self._num_characters += len(text)
        while self._num_characters > _MAX_KEPT_CHARACTERS:
            self._num_characters -= len(self._texts.popitem(last=False)[0])
        return replaced

    def _outside(self, text: str) -> str:
        """What stands in JSON outside of strings; no words, unless it is no JSON."""
        return _WORD.sub(lambda match: self._token(match[0]), text)

    def _spelt(self, inner: str) -> str:
        """The inside of a JSON string, escaped where it was."""
        if "\\" not in inner:
            return self.text(inner)
        units = _UNIT.findall(inner)
        said = "".join(map(_meant, units))
        pairs = zip(units, said, self.text(said), strict=True)
        return "".join(unit if old == new else _respelt(unit, new) for unit, old, new in pairs)

    def _token(self, token: str) -> str:
        known = self._tokens.get(token)
        if known is None:
            known = self._replaced(token) if token.isalnum() else token
            if len(self._tokens) >= _MAX_KEPT_TOKENS:
                self._tokens.clear()
            self._tokens[token] = known
        return known

    def _replaced(self, token: str) -> str:
        parts: list[str] = []
        for match in _RUN.finditer(token):
            before = token[: match.start()]
            # Behind a digit, the letters that are kept are left out of their alphabet; a letter or two before one
            # are no word.
            is_behind_digit = before[-1:].isdigit()
            is_code = match.end() - match.start() <= _CODE_LETTERS and token[match.end() :][:1].isdigit()
            parts.append((self._run if is_behind_digit or is_code else self._word)(before, match[0]))
        return "".join(parts)

    def _word(self, before: str, word: str) -> str:
        if word.casefold() in KEPT:
            return word
        replaced = self._run(before, word)
        # As a permutation of all words, this comes back to the first one, which is not kept.
        while replaced.casefold() in KEPT:
            replaced = self._run(before, replaced)
        return replaced

    def _run(self, before: str, run: str) -> str:
        return "".join(self._character(before, run[:index], character) for index, character in enumerate(run))

    def _character(self, before: str, begun: str, character: str) -> str:
        """The next one of its alphabet, in an order that the key and what stands before it give: never itself."""
        alphabet = _alphabet_of(character, before, begun)
        if character not in alphabet:
            return character
        said = f"{ord(alphabet[-1])}:{before}{begun}".encode("utf-8", "surrogatepass")
        if len(alphabet) > len(ascii_lowercase):
            turn = int.from_bytes(blake2b(said, key=self._key, digest_size=8).digest()) % (len(alphabet) - 1) + 1
            return alphabet[(_places(alphabet)[character] + turn) % len(alphabet)]
        drawn = _NUMBERS.unpack(blake2b(said, key=self._key, digest_size=_NUMBERS.size).digest())
        order = "".join(letter for _, letter in sorted(zip(drawn, alphabet, strict=False)))
        return order[(order.index(character) + 1) % len(order)]


def _alphabet_of(character: str, before: str, begun: str) -> str:
    """Characters of its kind; where it is none of them, it stays as it is."""
    if character in digits:
        return digits if before or begun else _FIRST_DIGITS
    plain = next((letters for letters in (ascii_lowercase, ascii_uppercase) if character in letters), None)
    if plain is not None:
        return _without_times(plain, begun.casefold()) if before[-1:].isdigit() else plain
    block = next((block for block in _BLOCKS if ord(character) in block), None)
    return _foreign_alphabet(block, category(character)) if block is not None and _is_letter(character) else ""


@cache
def _without_times(letters: str, begun: str) -> str:
    """Without those that go on with a word which is kept behind digits."""
    fixed = {word[len(begun)] for word in _BEHIND_DIGITS if word.startswith(begun) and word != begun}
    return "".join(letter for letter in letters if letter.lower() not in fixed)


@cache
def _foreign_alphabet(block: range, kind: str) -> str:
    found = (chr(code) for code in block if category(chr(code)) == kind)
    return "".join(character for character in found if _is_letter(character))


def _is_letter(character: str) -> bool:
    """And one in small letters too: texts are searched in these, and places in them must not move."""
    return character.isalpha() and len(character.lower()) == 1


@cache
def _places(alphabet: str) -> dict[str, int]:
    return {character: place for place, character in enumerate(alphabet)}


def _meant(unit: str) -> str:
    """The character that a part of a JSON string stands for."""
    if len(unit) == 1:
        return unit
    try:
        return json.loads(f'"{unit}"', strict=False)
    except ValueError:
        return "\0"  # No letter: it stays as it is.


def _respelt(unit: str, character: str) -> str:
    """Another character, escaped if the first was."""
    if len(unit) == 1:
        return character
    escaped = json.dumps(character)[1:-1]
    return escaped if unit[2:] == unit[2:].lower() else "\\u" + escaped[2:].upper()
