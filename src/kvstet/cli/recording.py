"""``--record PATH`` of commands that serve."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from rich.console import Console
from rich.markup import escape

from kvstet.cli.options import SERVER, option
from kvstet.traces.recorder import Recorder

Record = Annotated[Path | None, option("--record", panel=SERVER, text="Record what is said: a file, or a folder.")]


@contextmanager
def recorder_in(path: Path | None, name: str, console: Console) -> Generator[Recorder | None]:
    """What records while a command runs; None where nobody wants it. InvalidRequest: nothing can be written there."""
    if path is None:
        yield None
        return
    recorder = Recorder(path.expanduser(), name)
    console.print(f"[dim]Recording into {escape(str(recorder.path))}[/dim]", highlight=False)
    try:
        yield recorder
    finally:
        recorder.close()
