"""What can be measured on this machine: kvstet, and the servers that are found beside it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from kvstet.chat.builtin import builtin_template

Endpoint = Literal["chat", "text"]
"""``chat``: it is sent conversations, and renders them by the template that it was given. ``text``: it cannot be given
a template, so it is sent the prompt that kvstet made of the conversation; the tokens are the same."""

TEMPLATE = "chatml-tools"
"""Shows tools, and reasoning behind the last user message only: what the suite is about."""

ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}
"""For all servers, unless the user has set it. kvstet sets it for itself; without it, one other busy process makes
those of libllama's threads slow that spin, and what is compared is how quiet the machine was."""

KVSTET, LLAMA_CPP, LLAMA_CPP_PYTHON, OLLAMA = "kvstet", "llama.cpp", "llama-cpp-python", "Ollama"

OLLAMA_MODEL = "kvstet-bench"

_LLAMA_CPP_PYTHON_NEEDS = ("llama_cpp", "fastapi", "sse_starlette", "starlette_context", "pydantic_settings")


@dataclass(frozen=True, slots=True)
class Limits:
    """Less room than usual, for a scenario that is about having too little."""

    context_length: int
    cache_ram_mib: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Alike for all servers. ``folder`` is theirs to write to, and goes when all is over."""

    model: Path
    folder: Path
    context_length: int
    """Tokens of live state that all requests share; one of them may have them all, up to the trained length."""
    cache_ram_mib: int = 2048
    parallel: int = 8
    threads: int = 0
    """0: all cores that this process may use."""

    @property
    def num_threads(self) -> int:
        return self.threads or num_usable_cores()

    @property
    def template_file(self) -> Path:
        """The chat template; written when it is asked for."""
        path = self.folder / f"{TEMPLATE}.jinja"
        if not path.exists():
            path.write_text(builtin_template(TEMPLATE), encoding="utf-8")
        return path

    def limited(self, limits: Limits) -> Settings:
        return replace(self, context_length=limits.context_length, cache_ram_mib=limits.cache_ram_mib)


@dataclass(frozen=True, slots=True)
class Software:
    """A server that can be started here."""

    name: str
    version: str
    command: Callable[[Settings, int], list[str]]
    """Settings and a port -> what starts it."""
    endpoint: Endpoint = "chat"
    model: str | None = None
    """The name that it is asked for; None: the file's."""

    def shown(self, settings: Settings) -> str:
        """The command as a user would type it: without this machine's folders, and with a port that it would have."""
        words = shlex.join(_shown(word, settings) for word in self.command(settings, 8080))
        if self.name == KVSTET:
            return words.replace("python -m kvstet serve", "kvstet serve")
        return " ".join([*(f"{name}={value}" for name, value in ENVIRONMENT.items()), words])


def _shown(word: str, settings: Settings) -> str:
    if word == sys.executable:
        return "python"
    if word == str(settings.model):
        return settings.model.name
    programs = (shutil.which("llama-server"), shutil.which("ollama"))
    return Path(word).name if word.startswith(str(settings.folder)) or word in programs else word


def kvstet(*options: str) -> Software:
    """This kvstet, with its defaults but for what is alike for all."""
    return Software(KVSTET, version("kvstet"), lambda settings, port: [*_kvstet(settings, port), *options])


def _kvstet(settings: Settings, port: int) -> list[str]:
    size = str(settings.context_length)
    return [
        *(sys.executable, "-m", "kvstet", "serve", str(settings.model), "-c", size, "--live-cells", size),
        *("-np", str(settings.parallel), "-t", str(settings.num_threads), "-cram", str(settings.cache_ram_mib)),
        *("--cache-dir", str(settings.folder / "state"), "--chat-template", TEMPLATE, "--port", str(port)),
    ]


def found_peers() -> Iterator[Software]:
    """The servers on this machine, each once: llama.cpp's own from PATH, or else from its wheel."""
    program = shutil.which("llama-server")
    if program is not None:
        yield llama_server(program)
    elif importlib.util.find_spec("xllamacpp") is not None:
        yield wheel()
    if all(importlib.util.find_spec(name) for name in _LLAMA_CPP_PYTHON_NEEDS):
        yield llama_cpp_python()
    program = shutil.which("ollama")
    if program is not None:
        yield ollama(program)


def llama_server(program: str) -> Software:
    return Software(
        LLAMA_CPP, _version_of(program), lambda settings, port: [program, *_llama_server_options(settings, port)]
    )


def wheel() -> Software:
    """llama.cpp's server as the package ``xllamacpp`` has it."""
    return Software(
        LLAMA_CPP,
        f"xllamacpp {_package_version('xllamacpp')}",
        lambda settings, port: [
            *(sys.executable, "-m", "kvstet.bench.wheel"),
            *_llama_server_options(settings, port),
        ],
    )


def _llama_server_options(settings: Settings, port: int) -> list[str]:
    return [
        *("-m", str(settings.model), "-c", str(settings.context_length), "--kv-unified"),
        *("-np", str(settings.parallel), "-t", str(settings.num_threads), "--cache-ram", str(settings.cache_ram_mib)),
        *("--jinja", "--chat-template-file", str(settings.template_file), "--port", str(port)),
    ]


def llama_cpp_python() -> Software:
    """It takes one request at a time, keeps saved state in one cache, and cannot be given a template."""
    return Software(
        LLAMA_CPP_PYTHON,
        _package_version("llama-cpp-python"),
        lambda settings, port: [
            *(sys.executable, "-m", "llama_cpp.server", "--model", str(settings.model)),
            *("--n_ctx", str(settings.context_length), "--n_threads", str(settings.num_threads)),
            *("--cache", "true", "--cache_size", str(settings.cache_ram_mib << 20)),
            # Else a request that comes ends the one that runs.
            *("--interrupt_requests", "false", "--port", str(port)),
        ],
        endpoint="text",
    )


def ollama(program: str) -> Software:
    """One request at a time has the whole context, as is its default: it gives each of several a context of its own."""
    return Software(
        OLLAMA,
        _version_of(program),
        lambda settings, port: [
            *(sys.executable, "-m", "kvstet.bench.ollama", program, "-m", str(settings.model)),
            *("--folder", str(settings.folder / "ollama"), "-c", str(settings.context_length)),
            *("-t", str(settings.num_threads), "--port", str(port)),
        ],
        endpoint="text",
        model=OLLAMA_MODEL,
    )


def num_usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _version_of(program: str) -> str:
    """As ``--version`` tells it: ``version: 6869 (0ee2d3f)``, ``ollama version is 0.12.3``."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    match = re.search(r"version(?:: *| is )(.+)", told.stdout + told.stderr)
    return match[1].strip() if match else "unknown"
