"""llama.cpp's own server out of the package ``xllamacpp``, with the options of ``llama-server`` that are needed here.

::

    python -m kvstet.bench.wheel -m MODEL.gguf -c 8192 -np 8 -t 2 --cache-ram 2048 --kv-unified --port 8081
"""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path
from typing import Any


def serve(arguments: argparse.Namespace) -> None:
    """Until it is killed."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    options = xllamacpp.CommonParams()
    options.model.path = str(arguments.model)
    options.n_ctx, options.n_parallel = arguments.ctx_size, arguments.parallel
    options.kv_unified, options.cache_ram_mib = arguments.kv_unified, arguments.cache_ram
    options.hostnames, options.port = [arguments.host], arguments.port
    if arguments.threads:
        options.cpuparams.n_threads = options.cpuparams_batch.n_threads = arguments.threads
    if arguments.chat_template_file:
        options.chat_template, options.use_jinja = arguments.chat_template_file.read_text(encoding="utf-8"), True
    server = xllamacpp.Server(options)
    print("listening at", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


def parser() -> argparse.ArgumentParser:
    """Names as llama-server has them."""
    options = argparse.ArgumentParser(
        prog="python -m kvstet.bench.wheel", description=(__doc__ or "").partition("\n")[0]
    )
    options.add_argument("-m", "--model", type=Path, required=True)
    options.add_argument("-c", "--ctx-size", type=int, default=0)
    options.add_argument("-np", "--parallel", type=int, default=1)
    options.add_argument("-t", "--threads", type=int)
    options.add_argument("--cache-ram", type=int, default=8192, help="MiB")
    options.add_argument("--kv-unified", action="store_true")
    options.add_argument("--chat-template-file", type=Path)
    options.add_argument("--jinja", action="store_true", help="always")
    options.add_argument("--host", default="127.0.0.1")
    options.add_argument("--port", type=int, default=8080)
    return options


if __name__ == "__main__":
    serve(parser().parse_args())
