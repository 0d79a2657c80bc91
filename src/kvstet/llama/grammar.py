"""GBNF text, checked before libllama sees it; pure Python.

libllama trusts a grammar's author: a grammar may overflow its stack, fill the memory, loop for ever, or abort the
process later, when tokens are tried against it. `check_grammar` refuses what does so in llama-grammar.cpp:

- deep nesting and long chains of rules recurse in C++ (`parse_alternates`, `detect_left_recursion`);
- ``{5,2}`` underflows, and repetitions multiply their item in memory;
- left recursion is found only where the rules in front are *directly* empty; otherwise `advance_stack` grows its
  stack without end;
- the number of stacks at one place, which every token is tried against, can be exponential in the grammar's size;
- rules that never end can leave no stack at all, which asserts;
- token references (``<[42]>``) are matched by one rule when tokens are masked and by another when one is accepted,
  and the difference throws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from kvstet.errors import GrammarError
from kvstet.llama.gbnf import Alternative, Item, Rules, parse_gbnf, rule_name

START_RULE = "root"
MAX_CHARACTERS = 512 * 1024
MAX_CHAIN = 4000
"""Rules that begin with one another."""
MAX_STACKS = 10_000
"""Ways in which the text may go on at one place."""


def check_grammar(text: str) -> None:
    """GrammarError unless libllama can take the grammar and run it safely."""
    if not text.strip():
        raise GrammarError("The grammar is empty.", param="grammar")
    if len(text) > MAX_CHARACTERS:
        raise GrammarError(f"The grammar has {len(text)} characters; {MAX_CHARACTERS} are allowed.", param="grammar")
    rules = parse_gbnf(text)
    _require_rules(rules)
    nullable = _closure(rules, lambda item: item.minimum == 0)
    ending = _closure(rules, lambda item: item.minimum == 0 or item.rule is None)
    for name in rules:
        if name not in ending:
            raise GrammarError(f"The grammar's rule {rule_name(name)} never ends.", param="grammar")
    _LeftGraph(rules, nullable).check()


def _require_rules(rules: Rules) -> None:
    if START_RULE not in rules:
        raise GrammarError(f"The grammar has no rule named {START_RULE!r}.", param="grammar")
    for name, alternatives in rules.items():
        for item in (item for alternative in alternatives for item in alternative):
            if item.rule is not None and item.rule not in rules:
                raise GrammarError(
                    f"The grammar's rule {rule_name(name)} uses {item.rule!r}, which is not defined.", param="grammar"
                )


def _closure(rules: Rules, is_free: Callable[[Item], bool]) -> set[str]:
    """Rules with an alternative of which every item is free or names such a rule; in linear time (Dowling 1984)."""
    alternatives = [(name, alternative) for name, of_rule in rules.items() for alternative in of_rule]
    num_unmet: list[int] = []
    waiting: defaultdict[str | None, list[int]] = defaultdict(list)
    for index, (_, alternative) in enumerate(alternatives):
        needed = [item.rule for item in alternative if not is_free(item)]
        num_unmet.append(len(needed))
        for rule in needed:
            waiting[rule].append(index)
    known: set[str] = set()
    ready = [name for index, (name, _) in enumerate(alternatives) if not num_unmet[index]]
    while ready:
        name = ready.pop()
        met = [] if name in known else waiting[name]
        known.add(name)
        for index in met:
            num_unmet[index] -= 1
            if not num_unmet[index]:
                ready.append(alternatives[index][0])
    return known


@dataclass(frozen=True, slots=True)
class _Edge:
    """A rule may begin with another one."""

    target: str
    copies: int
    """Ways to get there: repetitions of an item that may be empty."""
    grows: bool
    """Something stands behind it, which libllama keeps on its stack meanwhile."""


class _LeftGraph:
    """Which rules begin with which, and what that costs libllama."""

    def __init__(self, rules: Rules, nullable: set[str]) -> None:
        self._nullable = nullable
        self._edges = {name: [e for a in alternatives for e in self._of(a)] for name, alternatives in rules.items()}
        self._widths = {name: 1 + len(alternatives) for name, alternatives in rules.items()}

    def check(self) -> None:
        """GrammarError for left recursion, too long a chain, or too many ways to go on."""
        num_stacks: dict[str, int] = {}
        chain: dict[str, int] = {}
        for component in _components(self._edges):
            members = set(component)
            self._refuse_growth(members)
            out = [edge for name in component for edge in self._edges[name] if edge.target not in members]
            stacks = sum(self._widths[name] for name in component)
            stacks += sum(edge.copies * num_stacks[edge.target] for edge in out)
            length = len(component) + max((edge.copies + chain[edge.target] for edge in out), default=0)
            if stacks > MAX_STACKS or length > MAX_CHAIN:
                raise GrammarError(
                    f"The grammar's rule {rule_name(component[0])} can begin in too many ways.", param="grammar"
                )
            num_stacks |= dict.fromkeys(component, stacks)
            chain |= dict.fromkeys(component, length)

    def _refuse_growth(self, members: set[str]) -> None:
        # A cycle without growth ends: libllama knows a stack that it has seen.
        for name in members:
            for edge in self._edges[name]:
                if edge.grows and edge.target in members:
                    raise GrammarError(f"The grammar's rule {rule_name(name)} is left-recursive.", param="grammar")

    def _of(self, alternative: Alternative) -> list[_Edge]:
        edges: list[_Edge] = []
        for index, item in enumerate(alternative):
            is_last = index == len(alternative) - 1
            can_be_empty = item.rule in self._nullable
            if item.rule is not None:
                copies = item.minimum + (1 if item.maximum is None else item.maximum - item.minimum)
                grows = not is_last or item.maximum != 1
                edges.append(_Edge(item.rule, copies if can_be_empty else 1, grows))
            if item.minimum and not can_be_empty:
                break
        return edges


def _components(edges: dict[str, list[_Edge]]) -> list[list[str]]:
    """Strongly connected components, each after those it leads to (Tarjan 1972, without recursion)."""
    found: list[list[str]] = []
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_names: list[str] = []
    is_open: set[str] = set()
    for start, of_start in edges.items():
        work = [(start, iter(of_start))] if start not in order else []
        while work:
            name, rest = work[-1]
            if name not in order:
                order[name] = lowest[name] = len(order)
                open_names.append(name)
                is_open.add(name)
            target = next((edge.target for edge in rest if edge.target not in order or edge.target in is_open), None)
            if target is None:
                work.pop()
                if work:
                    lowest[work[-1][0]] = min(lowest[work[-1][0]], lowest[name])
                if lowest[name] == order[name]:
                    found.append(_pop_until(name, open_names))
                    is_open.difference_update(found[-1])
            elif target in order:
                lowest[name] = min(lowest[name], order[target])
            else:
                work.append((target, iter(edges[target])))
    return found


def _pop_until(name: str, names: list[str]) -> list[str]:
    popped = [names.pop()]
    while popped[-1] != name:
        popped.append(names.pop())
    return popped
