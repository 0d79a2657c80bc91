"""Standard error as the commands write to it: for a terminal in its width, for a file in lines as long as they are."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

FILE_COLUMNS = 10_000
"""Width where there is no terminal: rich would take 80, and break every longer line."""


def stderr_console() -> Console:
    """Standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        console.width = FILE_COLUMNS
    return console


def log_handler(console: Console) -> logging.Handler:
    """Writes log lines to the console."""
    if console.is_terminal:
        return RichHandler(console=console, show_path=False, log_time_format="[%X]")
    # Rich would fill every line with spaces, to the console's whole width.
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)-8s %(message)s", datefmt="%X"))
    return handler
