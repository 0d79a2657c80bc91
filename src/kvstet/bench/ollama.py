"""Ollama with one model file and nothing else, in a folder of its own: what the user has of it is not touched.

::

    python -m kvstet.bench.ollama ollama -m MODEL.gguf --folder FOLDER -c 8192 -t 2 --port 8081

Ollama serves no file, only models that were made of one. So it runs twice: to make the model, and then to serve it.
Variables and the Modelfile's words are those of Ollama's documentation (FAQ, "Modelfile reference").
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx2

from kvstet.bench.servers import free_port
from kvstet.bench.software import OLLAMA_MODEL

MAKING_SECONDS = 300.0
"""For Ollama to answer, and for it to copy a large file."""


def serve(arguments: argparse.Namespace) -> None:
    """Returns never: this process becomes Ollama's. SystemExit: it cannot make the model."""
    name: str = arguments.program
    program = shutil.which(name) or name
    wanted = modelfile(arguments.model.absolute(), arguments.ctx_size, arguments.threads)
    made = arguments.folder / "Modelfile"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    # A file is not copied again where only the server starts anew.
    if not made.exists() or made.read_text(encoding="utf-8") != wanted:
        make(program, arguments.folder, wanted)
        made.write_text(wanted, encoding="utf-8")
    os.execve(program, [program, "serve"], environment(arguments.folder, arguments.port))


def modelfile(model: Path, ctx_size: int, threads: int) -> str:
    """No template: it is sent prompts as kvstet has rendered them."""
    words = [f"FROM {model}", "TEMPLATE {{ .Prompt }}", f"PARAMETER num_ctx {ctx_size}"]
    return "\n".join([*words, f"PARAMETER num_thread {threads}", ""])


def environment(folder: Path, port: int) -> Mapping[str, str]:
    """It keeps its key in the home folder, and unloads models that nobody asks for."""
    own = {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(folder / "models"), "OLLAMA_KEEP_ALIVE": "-1"}
    return {**os.environ, **own, "HOME": str(folder)}


def make(program: str, folder: Path, wanted: str) -> None:
    """Make the model of a Modelfile. SystemExit: says why not."""
    port = free_port()
    settings = environment(folder, port)
    source = folder / "Modelfile.new"
    source.write_text(wanted, encoding="utf-8")
    with subprocess.Popen([program, "serve"], env=settings) as server:
        try:
            _wait_until_it_answers(server, port)
            command = [program, "create", OLLAMA_MODEL, "-f", str(source)]
            made = subprocess.run(command, env=settings, timeout=MAKING_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            sys.exit(f"ollama did not make the model within {MAKING_SECONDS:.0f} seconds")
        finally:
            server.terminate()
    if made.returncode:
        sys.exit(f"ollama could not make the model (exit status {made.returncode})")


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + MAKING_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            httpx2.get(f"http://127.0.0.1:{port}/", trust_env=False)
        except httpx2.TransportError:
            time.sleep(0.1)
        else:
            return
    sys.exit("ollama does not start")


def parser() -> argparse.ArgumentParser:
    """Names as llama-server has them."""
    options = argparse.ArgumentParser(
        prog="python -m kvstet.bench.ollama", description=(__doc__ or "").partition("\n")[0]
    )
    options.add_argument("program", help="ollama, or where it is")
    options.add_argument("-m", "--model", type=Path, required=True)
    options.add_argument("--folder", type=Path, required=True, help="where models are kept")
    options.add_argument("-c", "--ctx-size", type=int, required=True)
    options.add_argument("-t", "--threads", type=int, required=True)
    options.add_argument("--port", type=int, default=8080)
    return options


if __name__ == "__main__":
    serve(parser().parse_args())
