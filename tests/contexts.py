"""A model file with a context of its own, for one test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from kvstet.config import ModelOptions
from kvstet.llama.context import Context
from kvstet.llama.model import Model


@contextmanager
def opened(path: Path, options: ModelOptions) -> Iterator[Context]:
    """``options`` are of any file; it is opened with those."""
    options = replace(options, path=path)
    with Model.load(options) as model:
        context = Context(model, options)
        try:
            yield context
        finally:
            context.close()
