"""What the terminal shows while things take time."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from kvstet.engine.client import EngineClient
from kvstet.engine.messages import Anticipate, Appraise, Appraised, Event, Finished, Generate, ModelInfo, Started, Stats
from kvstet.engine.messages import Progress as PromptProgress

PROGRESS_SECONDS = 2.0
"""A prompt that takes longer than this says how far it is, and again each time this has passed."""


@contextmanager
def loading_bar(console: Console, name: str) -> Generator[Callable[[float], None], None, None]:
    """A bar for the model's loading; yields what takes the loaded part, 0 to 1."""
    columns = (TextColumn("loading {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    # In a log file the bar would be nothing but an empty line.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(escape(name), total=1.0)
        yield lambda fraction: progress.update(task, completed=fraction)


class WatchedEngine:
    """An engine whose requests leave a line on the terminal, and whose long prompts say how far they are."""

    def __init__(self, inner: EngineClient, console: Console) -> None:
        self._inner = inner
        self._console = console

    @property
    def info(self) -> ModelInfo:
        return self._inner.info

    @property
    def is_ready(self) -> bool:
        return self._inner.is_ready

    async def appraise(self, question: Appraise) -> Appraised:
        return await self._inner.appraise(question)

    def anticipate(self, prompt: Anticipate) -> None:
        self._inner.anticipate(prompt)

    def stats(self) -> Stats:
        return self._inner.stats()

    async def close(self) -> None:
        await self._inner.close()

    async def generate(self, request: Generate) -> AsyncGenerator[Event, None]:
        name = request.id[-8:]
        due = time.monotonic() + PROGRESS_SECONDS
        events = self._inner.generate(request)
        try:
            async for event in events:
                if isinstance(event, PromptProgress) and time.monotonic() >= due:
                    due = time.monotonic() + PROGRESS_SECONDS
                    self._say(name, f"prompt {event.num_ready_tokens:,} of {event.num_prompt_tokens:,} tokens")
                elif isinstance(event, Started):
                    self._say(name, started_line(event))
                elif isinstance(event, Finished):
                    self._say(name, finished_line(event))
                yield event
        finally:
            await events.aclose()

    def _say(self, name: str, text: str) -> None:
        self._console.print(f"[dim]{time.strftime('%X')} {name}[/dim] {text}", highlight=False)


def started_line(event: Started) -> str:
    reuse = event.reuse
    return (
        f"prompt {reuse.num_prompt_tokens:,}: reused {reuse.num_reused_tokens:,}, "
        f"loaded {reuse.num_loaded_tokens:,}, to compute {reuse.num_computed_tokens:,}"
    )


def finished_line(event: Finished) -> str:
    text = f"{event.reason}: {event.num_new_tokens:,} tokens, prompt {event.compute_seconds:.2f} s"
    if event.num_new_tokens < 2 or event.decode_seconds <= 0:
        return text
    # Decoding is timed from the first token on.
    return f"{text}, {(event.num_new_tokens - 1) / event.decode_seconds:.1f} tokens/s"
