"""The command line: puts the layers together."""

from kvstet.cli.main import main

__all__ = ["main"]
