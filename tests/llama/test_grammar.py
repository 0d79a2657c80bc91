from __future__ import annotations

import pytest

from kvstet.errors import GrammarError
from kvstet.llama.gbnf import MAX_NESTING, Item, parse_gbnf
from kvstet.llama.grammar import MAX_CHARACTERS, check_grammar

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
"""


def test_groups_and_repetitions_are_read() -> None:
    rules = parse_gbnf('root ::= ("a" | item{2,3})* "b"?\nitem ::= [^a-z\\]] .')
    group, root, item = rules.values()
    assert list(rules) == ["root 0", "root", "item"]
    assert group == [(Item(None),), (Item("item", 2, 3),)]
    assert root == [(Item("root 0", 0, None), Item(None, 0, 1))]
    assert item == [(Item(None), Item(None))]


def test_a_repetition_can_be_repeated() -> None:
    rules = parse_gbnf('root ::= "a"{2}+')
    assert rules["root"] == [(Item("root 0", 1, None),)]
    assert rules["root 0"] == [(Item(None, 2, 2),)]


def test_texts_that_stand_for_nothing_leave_no_item() -> None:
    assert parse_gbnf('root ::= "" [] "a"{0} "b" |') == {"root": [(Item(None),), ()]}


def test_a_bound_beyond_what_libllama_counts_is_no_bound() -> None:
    assert parse_gbnf('root ::= "a"{1,2001}')["root"] == [(Item(None, 1, None),)]


@pytest.mark.parametrize(
    "grammar",
    [
        JSON,
        'root ::= "a"',
        "root ::= ",
        'root ::= ("a"?)*',
        'root ::= item*\nitem ::= "x" root?',
        'root ::= "' + "a" * 100_000 + '"',
        "root ::= " + "(" * 500 + '"a"' + ")?" * 500,
        "root ::= w{0,2000}\nw ::= [a-z]+",
        "root ::= " + " | ".join(f'"word{i}"' for i in range(5000)),
    ],
)
def test_a_sound_grammar_passes(grammar: str) -> None:
    check_grammar(grammar)


HIDDEN_LEFT_RECURSION = 'root ::= a root "x" | "y"\na ::= b\nb ::= "q" |'
ONLY_EMPTY = 'root ::= a root\na ::= b\nb ::= ""'
EXPONENTIAL = "root ::= a0\n" + "".join(f'a{i} ::= a{i + 1} "x" | a{i + 1} "y"\n' for i in range(40)) + 'a40 ::= "z"'
CHAIN = "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(9000)) + 'r9000 ::= "x"'
NESTED_OPTIONS = 'root ::= c{0,1000}\nc ::= b{0,1000}\nb ::= a{0,1000}\na ::= "x"?'


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("#" * (MAX_CHARACTERS + 1), "characters"),
        ('start ::= "a"', "no rule named 'root'"),
        ("root ::= word", "uses 'word', which is not defined"),
        ('root ::= "a', "line 1, at '\"a': not closed"),
        ('root ::= "a"\n| "b"', "line 2, at '| \"b\"': expected a name"),
        ('root ::= ("a"', "at the end: expected a closing parenthesis"),
        ('root ::= "a")', "expected a new line or the end"),
        ('root = "a"', "unexpected character"),
        ('root ::= "\\q"', "unknown escape"),
        ('root ::= "a\0"', "line 1"),
        ('root ::= *"a"', "expected something to repeat"),
        ('root ::= ""*', "expected something to repeat"),
        ('my_rule ::= "a"', "unexpected character"),
        ("root ::= <[42]>", "references to tokens"),
        ("root ::= !<think>", "references to tokens"),
        ('root ::= "a"{5,2}', "ends before it begins"),
        ('root ::= "a"{3000}', "more than 2000 repetitions"),
        ('root ::= "a"{99999999999999999999}', "99999999999999999999"),
        ('root ::= "' + "a" * 1000 + '"{2000}', "multiply"),
        ("root ::= " + "(" * MAX_NESTING + '"a"' + ")" * MAX_NESTING, "nests more than"),
        ('root ::= root "a" | "b"', "'root' is left-recursive"),
        (HIDDEN_LEFT_RECURSION, "'root' is left-recursive"),
        ('root ::= (item "," )*\nitem ::= root? "x"', "left-recursive"),
        ('root ::= "a" root', "'root' never ends"),
        (ONLY_EMPTY, "'root' never ends"),
        (EXPONENTIAL, "begin in too many ways"),
        (CHAIN, "begin in too many ways"),
        (NESTED_OPTIONS, "begin in too many ways"),
    ],
)
def test_a_grammar_that_libllama_must_not_see_says_why(grammar: str, problem: str) -> None:
    with pytest.raises(GrammarError) as caught:
        check_grammar(grammar)
    assert problem in str(caught.value)
    assert caught.value.param == "grammar"


def test_an_absurd_grammar_is_refused_in_linear_time() -> None:
    rules = range(6000)
    sequence = "root ::= " + " ".join(f"r{i}" for i in rules)
    grammar = "\n".join([sequence, *(f'r{i} ::= "a"?' for i in rules)])
    with pytest.raises(GrammarError, match="too many ways"):
        check_grammar(grammar)
