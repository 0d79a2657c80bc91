"""The terminal of ``kvstet agent``: what the model says goes to standard output, all else to standard error."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from kvstet.agent.events import Answered, Called, Compacted, Event, Replying, Retrying, Stepped
from kvstet.agent.meter import step_line
from kvstet.agent.shown import one_line, shown
from kvstet.agent.tools.tool import Action
from kvstet.dialects.reply import ReasoningDelta, RefusalDelta, TextDelta

_MAX_DIFF_LINES = 300
"""Of a change that is shown. Commands are always shown whole."""

_STYLES = {"+": "green", "-": "red", "@": "cyan"}


class Screen:
    """Shows what the agent does, piece by piece."""

    def __init__(self, output: Console, notes: Console) -> None:
        self._output = output
        self._notes = notes
        self._open: Console | None = None
        """Where a line has begun and is not ended."""

    def watch(self, event: Event) -> None:
        """One event; see `kvstet.agent.events`."""
        match event:
            case Replying(delta=TextDelta(text) | RefusalDelta(text), is_summary=False):
                self._stream(self._output, Text(shown(text)))
            case Replying(delta=ReasoningDelta(text), is_summary=False) if self._notes.is_terminal:
                self._stream(self._notes, Text(shown(text), style="dim italic"))
            case Replying():
                return
            case Called(name, arguments):
                self.note(f"● {one_line(name)} {one_line(arguments)}", "bold")
            case Answered(text=text):
                self.note(f"  {_gist(text)}", "red" if text.startswith("Error:") else "dim")
            case Stepped(step):
                self.note(step_line(step), "dim")
            case Compacted(compaction, problem):
                done = f"about {compaction.num_removed_tokens:,} tokens of the conversation"
                self.note(
                    f"not shortened: {problem}" if problem else f"shortened by {done} ({compaction.kind})", "yellow"
                )
            case Retrying(error, seconds):
                self.note(f"{one_line(str(error), 300)} Trying again in {seconds:.0f} s.", "yellow")

    def note(self, line: str, style: str = "") -> None:
        """A line for the user, beside what the model says."""
        self.end_line()
        self._notes.print(Text(line, style=style), highlight=False, soft_wrap=True)

    def end_line(self) -> None:
        if self._open is not None:
            self._open.print()
            self._open = None

    def ask_about(self, action: Action) -> None:
        """All that the user has to know to allow it."""
        self.note(f"? {one_line(action.title)}", "bold yellow")
        is_diff = action.tool in ("edit", "write")
        lines = shown(action.detail).split("\n")
        kept = lines[:_MAX_DIFF_LINES] if is_diff else lines
        for line in kept:
            self.note(f"  {line}", _STYLES.get(line[:1], "") if is_diff else "")
        if len(kept) < len(lines):
            self.note(f"  ({len(lines) - len(kept):,} more lines)", "yellow")

    def _stream(self, console: Console, text: Text) -> None:
        if self._open is not console:
            self.end_line()
        self._open = console
        console.print(text, end="", highlight=False, soft_wrap=True)
        console.file.flush()


def _gist(text: str) -> str:
    """The first line of a result, and how many there are."""
    lines = text.strip().split("\n")
    more = f" (+{len(lines) - 1:,} lines)" if len(lines) > 1 else ""
    return one_line(lines[0], 100) + more


def typed(read: Callable[[str], str], question: str) -> str:
    """What the user types. EOFError, and KeyboardInterrupt: asyncio would leave it to a loop that does not run now."""
    with _interruptible():
        return read(question)


@contextmanager
def _interruptible() -> Generator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
