"""kvstet: an inference server for coding agents in which an edit costs only the tokens it changed."""


def __getattr__(name: str) -> str:
    """``__version__``; looked up when it is asked for, so that the command line has its signals in hand before."""
    if name == "__version__":
        from importlib.metadata import version

        return version("kvstet")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
