"""Reads GBNF text as libllama does (`llama_grammar_parser` in llama-grammar.cpp), without recursion; pure Python."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvstet.errors import GrammarError

MAX_NESTING = 1000
"""Parentheses within parentheses; libllama recurses for each."""
MAX_REPETITIONS = 2000
"""libllama's own limit; a larger upper bound means "any number" to it."""
MAX_ELEMENTS = 1_000_000
"""Characters and rule names of the grammar once its repetitions are written out; 8 bytes each."""

_ESCAPE = r"""\\(?:[trn"\\\[\]-]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})"""
_LEXER = re.compile(
    r"""(?P<blank>[ \t]+|\#[^\r\n]*)
      | (?P<newline>\r\n?|\n)
      | (?P<assign>::=)
      | (?P<name>[a-zA-Z0-9-]+)
      | (?P<literal>"(?:ESCAPE|[^"\\])*")
      | (?P<class>\[(?:ESCAPE|[^\]\\])*\])
      | (?P<any>\.)
      | (?P<repeat>[*+?]|\{\s*[0-9]+\s*(?:,\s*[0-9]*\s*)?\})
      | (?P<open>\()
      | (?P<close>\))
      | (?P<or>\|)
      | (?P<token>[<!])""".replace("ESCAPE", _ESCAPE),
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Item:
    """One repeated symbol of an alternative."""

    rule: str | None
    """Name of a rule; None for characters."""
    minimum: int = 1
    maximum: int | None = 1


@dataclass(frozen=True, slots=True)
class Lexeme:
    kind: str
    text: str
    position: int


Alternative = tuple[Item, ...]
Rules = dict[str, list[Alternative]]


def parse_gbnf(text: str) -> Rules:
    """The grammar's rules, and one for each of its groups. GrammarError: libllama would not read it, or drown in it."""
    return _Parser(text).parse()


def rule_name(name: str) -> str:
    """A rule's name for users: that of a group is the rule it stands in."""
    return repr(name.partition(" ")[0])


class _Group:
    """Alternatives that are being read: those of a rule, or between two parentheses."""

    def __init__(self) -> None:
        self._alternatives: list[list[Item]] = [[]]
        self.repeatable_size: int | None = None
        """Elements of the last item; None where there is nothing that ``*`` could repeat."""

    def add(self, item: Item, size: int) -> None:
        self._alternatives[-1].append(item)
        self.repeatable_size = size

    def take_last(self) -> Item:
        return self._alternatives[-1].pop()

    def next_alternative(self) -> None:
        self._alternatives.append([])
        self.repeatable_size = None

    def alternatives(self) -> list[Alternative]:
        return [tuple(item for item in items if item.maximum != 0) for items in self._alternatives]


class _Parser:
    """Reads what `llama_grammar_parser` reads, without recursion; groups become rules with names of their own."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lexemes = _lexemes(text)
        self._next = 0
        self._num_elements = 0
        self._groups: list[_Group] = []
        self.rules: Rules = {}

    def parse(self) -> Rules:
        self._skip_newlines()
        while self._kind() != "end":
            self._rule()
            self._skip_newlines()
        return self.rules

    def _rule(self) -> None:
        name = self._take("name").text
        self._take("assign")
        self._skip_newlines()
        self._groups = [_Group()]
        while self._step(name):
            pass
        if len(self._groups) > 1:
            raise self._error("a closing parenthesis")
        if self._kind() not in ("newline", "end"):
            raise self._error("a new line or the end")
        self.rules[name] = self._groups[0].alternatives()  # as in libllama, the last of several definitions counts

    def _step(self, name: str) -> bool:
        """Read one symbol of a rule; False where the rule ends."""
        if len(self._groups) > 1:
            self._skip_newlines()
        group = self._groups[-1]
        match self._kind():
            case "literal" | "class" | "any" | "name":
                self._symbol(group)
            case "repeat":
                self._repeat(name, group)
            case "or":
                self._take("or")
                self._skip_newlines()
                group.next_alternative()
            case "open":
                self._open()
            case "close" if len(self._groups) > 1:
                self._close(name)
            case _:
                return False
        return True

    def _symbol(self, group: _Group) -> None:
        lexeme = self._take(self._kind())
        if lexeme.kind in ("literal", "class"):
            size = len(lexeme.text) - (3 if lexeme.text.startswith("[^") else 2)
        else:
            size = 1
        if size:
            group.add(Item(lexeme.text if lexeme.kind == "name" else None), self._counted(size))
        else:
            group.repeatable_size = None  # "" and [] stand for nothing

    def _open(self) -> None:
        self._take("open")
        self._groups.append(_Group())
        if len(self._groups) > MAX_NESTING:
            raise GrammarError(f"The grammar nests more than {MAX_NESTING} parentheses.", param="grammar")

    def _close(self, name: str) -> None:
        self._take("close")
        rule = self._add_rule(name, self._groups.pop().alternatives())
        self._groups[-1].add(Item(rule), self._counted(1))

    def _repeat(self, name: str, group: _Group) -> None:
        if group.repeatable_size is None:
            raise self._error("something to repeat")
        minimum, maximum = _bounds(self._take("repeat"))
        item = group.take_last()
        if item != Item(item.rule):  # a repetition of a repetition
            item = Item(self._add_rule(name, [(item,)]))
        copies = minimum + (1 if maximum is None else maximum - minimum)
        self._counted(group.repeatable_size * copies)
        group.add(Item(item.rule, minimum, maximum), group.repeatable_size * max(minimum, 1) + 1)

    def _add_rule(self, name: str, alternatives: list[Alternative]) -> str:
        group = f"{name} {len(self.rules)}"  # a blank cannot stand in a name of the grammar's own
        while group in self.rules:
            group += "'"
        self.rules[group] = alternatives
        return group

    def _counted(self, size: int) -> int:
        self._num_elements += size
        if self._num_elements > MAX_ELEMENTS:
            raise GrammarError("The grammar's repetitions multiply to more than libllama can hold.", param="grammar")
        return size

    def _kind(self) -> str:
        return self._lexemes[self._next].kind

    def _take(self, kind: str) -> Lexeme:
        lexeme = self._lexemes[self._next]
        if lexeme.kind != kind:
            raise self._error("::=" if kind == "assign" else f"a {kind}")
        self._next += 1
        return lexeme

    def _skip_newlines(self) -> None:
        while self._kind() == "newline":
            self._next += 1

    def _error(self, expected: str) -> GrammarError:
        return _syntax_error(self._text, self._lexemes[self._next].position, f"expected {expected}")


def _lexemes(text: str) -> list[Lexeme]:
    lexemes: list[Lexeme] = []
    position = 0
    while position < len(text):
        match = _LEXER.match(text, position)
        if match is None or match.lastgroup is None or "\0" in match.group():
            problem = "not closed, or with an unknown escape" if text[position] in '"[' else "unexpected character"
            raise _syntax_error(text, position, problem)
        if match.lastgroup == "token":
            raise _syntax_error(text, position, "references to tokens are not supported, write their text")
        if match.lastgroup != "blank":
            lexemes.append(Lexeme(match.lastgroup, match.group(), position))
        position = match.end()
    return [*lexemes, Lexeme("end", "", len(text))]


def _bounds(lexeme: Lexeme) -> tuple[int, int | None]:
    short = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(lexeme.text)
    if short is not None:
        return short
    first, comma, second = lexeme.text[1:-1].partition(",")
    if max(len(first.strip()), len(second.strip())) > 9:
        raise GrammarError(f"The grammar repeats something {lexeme.text} times.", param="grammar")
    minimum = int(first)
    maximum = minimum if not comma else int(second) if second.strip() else None
    if minimum > MAX_REPETITIONS:
        raise GrammarError(f"The grammar asks for more than {MAX_REPETITIONS} repetitions.", param="grammar")
    if maximum is not None and maximum < minimum:
        raise GrammarError(f"The grammar's repetition {lexeme.text} ends before it begins.", param="grammar")
    return minimum, None if maximum is not None and maximum > MAX_REPETITIONS else maximum


def _syntax_error(text: str, position: int, problem: str) -> GrammarError:
    line = text.count("\n", 0, position) + 1
    near = text[position : position + 20].partition("\n")[0]
    where = f"at {near!r}" if near else "at the end"
    return GrammarError(f"The grammar is not valid GBNF: line {line}, {where}: {problem}.", param="grammar")
