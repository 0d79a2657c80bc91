"""kvstet: an inference server for coding agents in which an edit costs only the tokens it changed."""

from importlib.metadata import version

__version__ = version("kvstet")
