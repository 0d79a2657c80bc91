#!/usr/bin/env python3
"""Install kvstet into ``.venv`` in this tree: ``install.py [EXTRA ...]``, by default ``demo dev``.

libllama is compiled for the CPU at hand, once, which takes about five minutes on two cores. The wheel is kept outside
the tree, in ``$KVSTET_WHEELS`` or the user's cache, so that a fresh clone finds it. Needs Python 3.11 and a C++
compiler; CMake and Ninja are used where they are installed, and otherwise come with the build. ``CMAKE_ARGS`` is
handed on to it.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "kvstet-installed.json"
LOG = VENV / "kvstet-install.log"

DEFAULT_EXTRAS = ["demo", "dev"]
ENGINE_EXTRAS = {"engine", "demo", "bench"}
OLDEST_PYTHON = (3, 11)
BUILD_SETTINGS = ("cmake.define.LLAVA_BUILD=OFF",)
"""kvstet takes no images, so the vision library is left out; that saves a quarter of the build."""

PLAIN_INTERVAL_SECONDS = 15
"""How often progress is printed where there is no terminal to rewrite a line on."""


class InstallError(Exception):
    """Something the user has to do; the message says what."""


def main() -> int:
    extras = sys.argv[1:] or DEFAULT_EXTRAS
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if is_installed(extras):
            print("kvstet is installed and up to date (.venv)")
            return 0
        install(extras)
    except InstallError as error:
        print(f"\nInstallation failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; run the same command again to go on.", file=sys.stderr)
        return 130
    print(f"Installed in {clock(time.monotonic() - begun)}.")
    return 0


def install(extras: Sequence[str]) -> None:
    check_python()
    create_venv()
    wheel = engine_wheel() if ENGINE_EXTRAS & set(extras) else None
    wanted = sorted({*extras, *installed_extras()})
    print(f"[3/4] installing kvstet[{','.join(wanted)}]", flush=True)
    project = f"{ROOT}[{','.join(wanted)}]"
    run([PYTHON, "-m", "pip", "install", *([wheel] if wheel else []), "--editable", project], pip_progress)
    print("[4/4] checking that it runs here", flush=True)
    check_installation(wheel)
    STAMP.write_text(json.dumps({"inputs": fingerprint(), "extras": wanted}))


# What is there already


def is_installed(extras: Sequence[str]) -> bool:
    return PYTHON.exists() and set(extras) <= set(installed_extras())


def installed_extras() -> list[str]:
    """Extras that the last installation brought, if nothing it depends on has changed since."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return []
    return stamp["extras"] if stamp["inputs"] == fingerprint() else []


def fingerprint() -> str:
    inputs = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), str(ROOT).encode()]
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()


def check_python() -> None:
    if sys.version_info < OLDEST_PYTHON:
        raise InstallError(
            f"Python 3.11 or newer is needed, this is {platform.python_version()}. Try PYTHON=python3.11."
        )


def create_venv() -> None:
    if PYTHON.exists():
        print("[1/4] .venv is there", flush=True)
        return
    print(f"[1/4] creating .venv with Python {platform.python_version()}", flush=True)
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", VENV], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise InstallError(f"no virtual environment could be made:\n{result.stdout}{result.stderr}")


# libllama


def engine_wheel() -> Path:
    """The llama-cpp-python wheel for this CPU, from the cache or built into it."""
    requirement = engine_requirement()
    cache = wheel_cache() / machine_key(requirement)
    cache.mkdir(parents=True, exist_ok=True)
    with locked(cache / "lock"):
        if wheel := cached_wheel(cache):
            print(f"[2/4] libllama was built before: {wheel}", flush=True)
            return wheel
        check_compiler()
        print(f"[2/4] building libllama (once, about 5 minutes on 2 cores), {requirement}", flush=True)
        return build_wheel(requirement, cache)


def engine_requirement() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [requirement] = project["optional-dependencies"]["engine"]
    return requirement


def wheel_cache() -> Path:
    if folder := os.environ.get("KVSTET_WHEELS"):
        return Path(folder).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvstet" / "wheels"


def machine_key(requirement: str) -> str:
    """Names what a build depends on. The compiler targets this very CPU: elsewhere its code may be illegal.

    The Python version is no part of it, since the library does not link against Python.
    """
    build = "\n".join([requirement, os.environ.get("CMAKE_ARGS", ""), cpu_features(), " ".join(compiler_flags())])
    return f"{sys.platform}-{platform.machine()}-{hashlib.sha256(build.encode()).hexdigest()[:16]}"


def cpu_features() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:
        return platform.processor()
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return " ".join(sorted(features.partition(":")[2].split()))


def build_environment() -> dict[str, str]:
    flags = {name: " ".join([os.environ.get(name, ""), *compiler_flags()]).strip() for name in ("CFLAGS", "CXXFLAGS")}
    return {**os.environ, **{name: value for name, value in flags.items() if value}}


@functools.cache
def compiler_flags() -> tuple[str, ...]:
    """Flags without which libllama would die of an illegal instruction with its first prompt.

    GCC before 13 takes `_tile_loadconfig` to read 8 bytes and drops the stores to the rest of the tile configuration;
    and some virtual machines announce AMX without running it.
    """
    if "amx_tile" not in cpu_features().split():
        return ()
    choices: tuple[tuple[str, ...], ...] = ((), ("-fno-dse",))
    no_amx = ("-mno-amx-tile", "-mno-amx-int8", "-mno-amx-bf16")
    return next((flags for flags in choices if runs(AMX_PROBE, "-O3", "-mamx-tile", *flags)), no_amx)


AMX_PROBE = """
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
struct tiles { unsigned char palette, start, reserved[14]; unsigned short columns[16]; unsigned char rows[16]; };
static __attribute__((noinline)) void wipe(void) {
    volatile unsigned char stack[1024];
    for (int i = 0; i < 1024; i++) stack[i] = 0;
}
static __attribute__((noinline)) void configure(void) {
    struct tiles tiles __attribute__((aligned(64))) = {0};
    tiles.palette = 1;
    for (int i = 0; i < 8; i++) { tiles.rows[i] = 8; tiles.columns[i] = 64; }
    _tile_loadconfig(&tiles);
}
int main(void) {
    if (syscall(SYS_arch_prctl, 0x1023, 18)) return 1; /* ask for the tile registers */
    wipe();
    configure();
    _tile_zero(4);
    _tile_release();
    return 0;
}
"""


def runs(source: str, *flags: str) -> bool:
    """Whether a small C program compiles and ends well."""
    compiler = os.environ.get("CC", "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "probe"
        command = [*compiler, *flags, "-x", "c", "-o", program, "-"]
        try:
            built = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
        except FileNotFoundError:
            return False
        return built.returncode == 0 and subprocess.run([program], capture_output=True, check=False).returncode == 0


def cached_wheel(cache: Path) -> Path | None:
    return next(iter(sorted(cache.glob("*.whl"))), None)


def check_compiler() -> None:
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    if not any(name and shutil.which(name.split()[0]) for name in names):
        raise InstallError(
            "no C++ compiler was found, and libllama is built from source.\n"
            "  Debian, Ubuntu: apt install g++      Fedora: dnf install gcc-c++      macOS: xcode-select --install"
        )


def build_wheel(requirement: str, cache: Path) -> Path:
    """Build beside the cache and move the finished wheel in, so that a half-built one is never found there."""
    for leftover in cache.glob("building-*"):  # of a build that was killed: this one has the lock
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as folder:
        run(build_command(requirement, folder), ninja_progress)
        built = next(Path(folder).glob("*.whl"))
        return built.rename(cache / built.name)


def build_command(requirement: str, folder: str) -> list[str | Path]:
    # --no-cache-dir: pip's own cache of built wheels does not know for which CPU they were built.
    name = requirement.partition("==")[0]
    settings = [f"--config-settings={setting}" for setting in BUILD_SETTINGS]
    flags = ["--verbose", "--no-deps", "--no-binary", name, "--no-cache-dir", "--wheel-dir", folder]
    return [PYTHON, "-m", "pip", "wheel", *flags, *settings, requirement]


def check_installation(wheel: Path | None) -> None:
    code = "import kvstet; print('kvstet', kvstet.__version__)"
    if wheel:
        code += "; import llama_cpp; print('llama-cpp-python', llama_cpp.__version__)"
        code += "; llama_cpp.llama_backend_init(); print(llama_cpp.llama_print_system_info().decode())"
    result = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    if result.returncode:
        hint = f"\nIf libllama is at fault, delete {wheel} and run this again." if wheel else ""
        raise InstallError(f"the installed package does not run:\n{result.stdout}{result.stderr}{hint}")
    for line in result.stdout.splitlines():
        print(f"      {line}")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; says so when another installation has it."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("[2/4] another installation is building libllama; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Running commands with a line of progress


def ninja_progress(line: str) -> str | None:
    """What a line of the build's output says about how far it is."""
    if step := re.search(r"\[(\d+)/(\d+)\] ", line):
        done, total = int(step[1]), int(step[2])
        return f"compiling {100 * done // total:3d}% ({done} of {total} files)"
    stages = {
        "Downloading": "downloading the source",
        "Installing build dep": "preparing",
        "*** Configuring": "configuring",
    }
    return next((stage for text, stage in stages.items() if text in line), None)


def pip_progress(line: str) -> str | None:
    words = line.split()
    if words[:1] == ["Downloading"] and len(words) > 1:
        return " ".join([words[0], words[1].rpartition("/")[2], *words[2:4]])
    if words[:1] in (["Installing"], ["Building"], ["Preparing"]):
        return " ".join(words[:3])
    return None


def run(command: Sequence[str | Path], describe: Callable[[str], str | None]) -> None:
    """Run a command with its output in the log, and show how far it is. InstallError with the end of the log."""
    lines: list[str] = []
    progress = Progress()
    with LOG.open("a", encoding="utf-8") as log, start(command) as process:
        log.write(f"\n$ {' '.join(str(word) for word in command)}\n")
        reader = threading.Thread(target=collect, args=(process.stdout, lines, log, progress, describe))
        reader.start()
        try:
            wait(process, progress)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
        finally:
            reader.join()
            progress.close()
    if process.returncode:
        raise InstallError("the last lines were\n" + "".join(lines[-40:]) + f"(all of it: {LOG})")


def start(command: Sequence[str | Path]) -> subprocess.Popen[str]:
    # In a session of its own, so that the compilers below it can be stopped with it.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=ROOT,
        env=build_environment(),
        start_new_session=True,
    )


def collect(output: Any, lines: list[str], log: Any, progress: Progress, describe: Callable[[str], str | None]) -> None:
    for line in output:
        lines.append(line)
        log.write(line)
        progress.text = describe(line) or progress.text


def wait(process: subprocess.Popen[str], progress: Progress) -> None:
    while process.poll() is None:
        progress.show()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)


class Progress:
    """One line that is rewritten every second on a terminal, and printed now and then elsewhere."""

    def __init__(self) -> None:
        self.text = "starting"
        self._start = time.monotonic()
        self._shown_at = self._start
        self._is_live = sys.stdout.isatty()

    def show(self) -> None:
        now = time.monotonic()
        line = f"      {clock(now - self._start)}  {self.text}"
        if self._is_live:
            print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif now - self._shown_at >= PLAIN_INTERVAL_SECONDS:
            self._shown_at = now
            print(line, flush=True)

    def close(self) -> None:
        if self._is_live:
            print("\r\033[K", end="")
        print(f"      took {clock(time.monotonic() - self._start)}", flush=True)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}m{int(seconds) % 60:02d}s"


if __name__ == "__main__":
    sys.exit(main())
