"""Models by their name on a hub: ``hf:OWNER/REPO[:QUANT]``, downloaded once, then found in the hub's own cache."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kvstet.cache.fingerprint import PART
from kvstet.errors import KvstetError

PREFIX = "hf:"
DEFAULT_QUANT = "Q4_K_M"
ANSWER_SECONDS = 15.0

_NAME = re.compile(r"hf:([\w.-]+/[\w.-]+)(?::([\w.-]+))?")
_REFUSED = ("RepositoryNotFoundError", "GatedRepoError", "DisabledRepoError")


class HubError(KvstetError):
    """A model that cannot be had from the hub: not found, not allowed, or out of reach."""


def fetch(name: str) -> Path:
    """The model's file, or the first of its parts; downloaded if it is not there yet. Raises HubError.

    What was downloaded before is taken as it is, and nothing is asked of the hub. An interrupted download goes on where
    it stopped. Progress goes to standard error.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise HubError(f"{name!r} names no model on the hub: write hf:OWNER/REPO or hf:OWNER/REPO:QUANT.")
    repo, quant = found[1], found[2]
    hub = _hub()
    kept = _kept(hub, repo)
    if any(_has_quant(file, quant or DEFAULT_QUANT) for file in kept):
        return kept[chosen(repo, kept, quant)]
    try:
        listed: Sequence[str] = [file.rfilename for file in hub.model_info(repo, timeout=ANSWER_SECONDS).siblings]
    except Exception as error:  # What it raises depends on its version, and on the HTTP client below it.
        if type(error).__name__ in _REFUSED:
            raise HubError(f"The hub does not give out {repo}: {_first_line(error)}") from error
        if kept and quant is None:
            return kept[chosen(repo, kept, None)]
        what = f"{repo}{f' in {quant}' if quant else ''}"
        raise HubError(
            f"The hub cannot be reached ({_first_line(error).rstrip('.')}), and {what} was not downloaded before."
        ) from error
    files = parts_of(chosen(repo, listed, quant), listed)
    try:
        paths = [Path(hub.hf_hub_download(repo, file)) for file in files]
    except Exception as error:
        raise HubError(f"{repo} could not be downloaded: {_first_line(error)} Start again to go on with it.") from error
    return paths[0]


def chosen(repo: str, files: Iterable[str], quant: str | None) -> str:
    """The GGUF to take, of a split one the first part: of this quant, else of the default one, else the only one.

    Raises HubError, which lists what there is.
    """
    models = [file for file in files if file.endswith(".gguf") and "mmproj" not in file.lower() and _is_first(file)]
    if not models:
        raise HubError(f"{repo} has no GGUF file.")
    fitting = [file for file in models if _has_quant(file, quant or DEFAULT_QUANT)]
    if not fitting and quant is None and len(models) == 1:
        fitting = models
    if fitting:
        # "UD-Q4_K_M" is a Q4_K_M too; the plain one is meant.
        return min(fitting, key=lambda file: (len(file), file))
    wanted = f"no {quant}" if quant else f"no {DEFAULT_QUANT}, and several others: add :QUANT"
    raise HubError(f"{repo} has {wanted}. It has: {', '.join(sorted(PART.sub('.gguf', file) for file in models))}.")


def parts_of(first: str, files: Iterable[str]) -> list[str]:
    """All files of a model, in order."""
    part = PART.search(first)
    if part is None:
        return [first]
    names = [f"{first[: part.start()]}-{number:05}-of-{part[2]}.gguf" for number in range(1, int(part[2]) + 1)]
    missing = sorted(set(names) - set(files))
    if missing:
        raise HubError(f"The model is not whole: {missing[0]} is missing.")
    return names


def _kept(hub: Any, repo: str) -> dict[str, Path]:
    """Models that were downloaded whole: the first file of each, as the hub calls it."""
    try:
        folder = Path(hub.snapshot_download(repo, local_files_only=True))
    except Exception:  # Nothing of it was downloaded; what says so depends on the version.
        return {}
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*.gguf"))}
    return {name: path for name, path in files.items() if _is_first(name) and _is_whole(name, files)}


def _is_whole(first: str, files: Iterable[str]) -> bool:
    try:
        parts_of(first, files)
    except HubError:
        return False
    return True


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise HubError("Models of the hub need the package huggingface_hub: pip install 'kvstet[hub]'.") from error


def _is_first(file: str) -> bool:
    part = PART.search(file)
    return part is None or int(part[1]) == 1


def _has_quant(file: str, quant: str) -> bool:
    """Whether the quant stands in the name, and not as a part of another."""
    return bool(re.search(rf"(?<![a-z0-9]){re.escape(quant.lower())}(?![a-z0-9_])", file.lower()))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
