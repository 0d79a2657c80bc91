"""Where each message lies in a rendered template: its loops over messages are made to print markers.

`instrument` rewrites a parsed template: each ``for`` loop over messages first prints a marker that names the message of
this turn, and an end marker stands behind the loop. `Marker` makes the markers of one render and takes them out again.

The text without markers is what the untouched template prints, by construction: markers go only where a loop prints
straight to the output. A recursive loop, and one inside a macro, a ``set`` block, a filter or a named block are left
alone, because the template can look at what such a part has printed (measure it, trim it), and would see the markers.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from kvstet.edits.alignment import longest_ascent

MARK = "_kvstet_mark"
MARK_AT = "_kvstet_mark_at"
END = "_kvstet_end"

NodeT = TypeVar("NodeT", bound=nodes.Node)

_CAPTURES = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.Block)


@dataclass(frozen=True, slots=True)
class Mark:
    """Message ``index`` begins at character ``start``; ``index`` is None where the last message ends."""

    start: int
    index: int | None


@dataclass(frozen=True, slots=True)
class Rendered:
    """What a template printed.

    ``marks`` has one mark for each message, in order, and a last one for the end of the last message; the first stands
    at 0. It is empty where the template does not show where its messages begin.
    """

    text: str = field(repr=False)
    marks: tuple[Mark, ...]


def instrument(template: nodes.Template) -> int:
    """Make the template's loops over messages print markers, in place. Returns how many loops there are."""
    transformer = _LoopTransformer(_names_of_messages(template))
    transformer.visit(template)
    return transformer.num_loops


def _names_of_messages(template: nodes.Template) -> frozenset[str]:
    """``messages``, and all variables that are set, however indirectly, from an expression that mentions it."""
    assigned = [(_names(node.target), _names(node.node)) for node in template.find_all(nodes.Assign)]
    for block in template.find_all(nodes.With):
        assigned += [(_names(t), _names(v)) for t, v in zip(block.targets, block.values, strict=True)]
    known = {"messages"}
    while new := {name for targets, sources in assigned if sources & known for name in targets - known}:
        known |= new
    return frozenset(known)


def _names(node: nodes.Node) -> set[str]:
    found = {name.name for name in _with_descendants(node, nodes.Name)}
    return found | {ref.name for ref in _with_descendants(node, nodes.NSRef)}


def _with_descendants(node: nodes.Node, kind: type[NodeT]) -> list[NodeT]:
    return [*([node] if isinstance(node, kind) else []), *node.find_all(kind)]


class _LoopTransformer(NodeTransformer):
    """Adds the markers; ``num_loops`` counts the loops that have them, and numbers them."""

    def __init__(self, message_names: frozenset[str]) -> None:
        self.num_loops = 0
        self._message_names = message_names

    def visit(self, node: nodes.Node, *args: object, **kwargs: object) -> object:
        if isinstance(node, _CAPTURES) or (isinstance(node, nodes.For) and node.recursive):
            return node
        if isinstance(node, nodes.For):
            return self._mark_loop(node)
        return self.generic_visit(node)

    def _mark_loop(self, node: nodes.For) -> nodes.Node | list[nodes.Node]:
        self.generic_visit(node)
        if not _names(node.iter) & self._message_names:
            return node
        loop = nodes.Const(self.num_loops)
        self.num_loops += 1
        node.body.insert(0, _mark_output(loop, node))
        return [node, _output(END, loop, at=node)]


def _mark_output(loop: nodes.Const, node: nodes.For) -> nodes.Output:
    """The loop's variables may be messages; over a ``range`` they may be indices into the sequence it measures."""
    targets = [nodes.Name(name.name, "load") for name in _with_descendants(node.target, nodes.Name)]
    called = [call.node for call in _with_descendants(node.iter, nodes.Call)]
    if not any(isinstance(function, nodes.Name) and function.name == "range" for function in called):
        return _output(MARK, loop, *targets, at=node)
    measured = [f.node for f in _with_descendants(node.iter, nodes.Filter) if f.name in ("length", "count") and f.node]
    sequence = measured[0] if measured else nodes.Name("messages", "load")
    return _output(MARK_AT, loop, sequence, *targets, at=node)


def _output(function: str, *arguments: nodes.Expr, at: nodes.Node) -> nodes.Output:
    call = nodes.Call(nodes.Name(function, "load"), list(arguments), [], None, None)
    output = nodes.Output([call])
    output.set_lineno(at.lineno, override=False)
    if at.environment is not None:
        output.set_environment(at.environment)
    return output


class Marker:
    """The markers of one render: how they are printed, and how they are read.

    Each carries a random number, so that no text of a user can be taken for one.
    """

    def __init__(self, messages: Sequence[Mapping[str, object]]) -> None:
        self._messages = messages
        self._index = {id(message): index for index, message in enumerate(messages)}
        self._nonce = secrets.token_hex(8)

    @property
    def functions(self) -> dict[str, object]:
        """What the instrumented template calls."""
        return {MARK: self._mark, MARK_AT: self._mark_at, END: self._end}

    def _mark(self, loop: int, *variables: object) -> str:
        found = (self._index.get(id(variable)) for variable in variables)
        return next((self._marker(loop, index) for index in found if index is not None), "")

    def _mark_at(self, loop: int, sequence: object, *variables: object) -> str:
        """The loop counts positions of ``sequence``, which may be a part of the messages."""
        counted = cast("Sequence[object]", sequence) if isinstance(sequence, list) else self._messages
        positions = (variable for variable in variables if isinstance(variable, int) and 0 <= variable < len(counted))
        return self._mark(loop, *(counted[position] for position in positions))

    def _end(self, loop: int) -> str:
        return self._marker(loop, "")

    def _marker(self, loop: int, index: int | str) -> str:
        return f"\uf8f0{self._nonce}:{loop}:{index}\uf8f1"

    def read(self, output: str) -> Rendered:
        """Take the markers out of what the instrumented template printed."""
        parts = re.split(f"\uf8f0{self._nonce}:(\\d+):(\\d*)\uf8f1", output)
        pieces, start, owners = [parts[0]], len(parts[0]), _Owners()
        for loop, index, piece in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            owners.see(loop, int(index) if index else None)
            owners.print(piece, start)
            pieces.append(piece)
            start += len(piece)
        return Rendered("".join(pieces), _place(owners.begins, owners.stop, len(self._messages)))


class _Owners:
    """Follows the markers through nested loops, and notes which message printed what."""

    def __init__(self) -> None:
        self.begins: list[tuple[int, int]] = []
        """``(message index, start)`` of each stretch of text that one message printed."""
        self.stop = 0
        """Where the last of these stretches ends."""
        self._open: list[tuple[str, int]] = []

    def see(self, loop: str, index: int | None) -> None:
        """A turn of the loop begins with message ``index``, or the loop ends (None)."""
        depth = next((d for d, (open_loop, _) in enumerate(self._open) if open_loop == loop), len(self._open))
        del self._open[depth:]
        if index is not None:
            self._open.append((loop, index))

    def print(self, piece: str, start: int) -> None:
        """Blank pieces count for nothing: passes that only look at the messages may leave line breaks behind."""
        if not self._open or not piece or piece.isspace():
            return
        self.stop = start + len(piece)
        owner = self._open[-1][1]
        if not self.begins or self.begins[-1][0] != owner:
            self.begins.append((owner, start))


def _place(begins: list[tuple[int, int]], stop: int, num_messages: int) -> tuple[Mark, ...]:
    """One mark per message and the end. What precedes the first stretch belongs to message 0; silent ones are empty."""
    if not begins:
        return ()
    # Templates may print a message's part out of order (all system messages first, tool results within the call's
    # turn); the conversation proper is what stands in order.
    starts = dict(begins[position] for position in longest_ascent([index for index, _ in begins]))
    marks = [Mark(stop, None)]
    for index in reversed(range(1, num_messages)):
        marks.append(Mark(starts.get(index, marks[-1].start), index))
    marks.append(Mark(0, 0))
    return tuple(reversed(marks))
