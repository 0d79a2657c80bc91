"""``kvstet serve``: one model behind the OpenAI endpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import platformdirs
import typer

from kvstet.api import server as http
from kvstet.api.access import gather_keys
from kvstet.api.guards import host_name, origin
from kvstet.cli.clients.client import KEY_VARIABLE
from kvstet.cli.console import stderr_console
from kvstet.cli.stack import Stack
from kvstet.cli.startup import show_startup
from kvstet.cli.watch import WatchedEngine, loading_bar
from kvstet.config import MIB, EngineOptions, FlashAttention, KvType, ModelOptions, RopeScaling, ServerOptions
from kvstet.demo.model import demo_model_path

console = stderr_console()

DEFAULT_CACHE_FOLDER = platformdirs.user_cache_path("kvstet") / "state"
CACHE_FOLDER_VARIABLE = "KVSTET_CACHE_DIR"
KEY_FILE_VARIABLE = "KVSTET_API_KEY_FILE"

MODEL, CACHE, SERVER, ACCESS = "Model (names as in llama.cpp)", "Cache and scheduling", "Server", "Access"


def option(
    *names: str,
    panel: str,
    text: str,
    at_least: float | None = None,
    at_most: float | None = None,
    variable: str | None = None,
) -> object:
    """A documented option in one of the help's panels; a value out of range is refused before anything is loaded.

    ``variable`` is one of the environment that says the same.
    """
    return typer.Option(*names, help=text, rich_help_panel=panel, min=at_least, max=at_most, envvar=variable)


def serve(
    model: Annotated[Path | None, typer.Argument(help="A GGUF file; none: the bundled SmolLM2-135M.")] = None,
    *,
    host: Annotated[str, option("--host", panel=SERVER, text="Address to bind.")] = "127.0.0.1",
    port: Annotated[
        int, option("--port", panel=SERVER, text="Port; 0 takes a free one.", at_least=0, at_most=65535)
    ] = 8080,
    api_key: Annotated[
        list[str] | None,
        option("--api-key", panel=ACCESS, text="Key that clients must send; repeatable.", variable=KEY_VARIABLE),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        option("--api-key-file", panel=ACCESS, text="Named keys, with limits: TOML.", variable=KEY_FILE_VARIABLE),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        option("--allowed-host", panel=ACCESS, text="Further name of this server; repeatable. *: any."),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        option("--cors-origin", panel=ACCESS, text="Web page that may use the server; repeatable. *: all."),
    ] = None,
    alias: Annotated[
        list[str] | None, option("-a", "--alias", panel=SERVER, text="Name in /v1/models; repeatable. Any is served.")
    ] = None,
    max_body: Annotated[int, option("--max-body", panel=SERVER, text="Largest request body, MiB.", at_least=1)] = 64,
    chat_template: Annotated[
        str | None, option("--chat-template", panel=SERVER, text="Built-in name or file, for the model's own.")
    ] = None,
    exact_echo: Annotated[
        bool, option("--exact-echo/--no-exact-echo", panel=SERVER, text="Put own replies back token by token.")
    ] = True,
    mask_billing: Annotated[
        bool, option("--mask-billing/--no-mask-billing", panel=SERVER, text="Hide Claude Code's billing header.")
    ] = True,
    cache_ram: Annotated[
        int, option("-cram", "--cache-ram", panel=CACHE, text="RAM for saved state, MiB.", at_least=0)
    ] = 2048,
    cache_dir: Annotated[
        Path, typer.Option(help="Folder for saved state.", rich_help_panel=CACHE, envvar=CACHE_FOLDER_VARIABLE)
    ] = DEFAULT_CACHE_FOLDER,
    cache_disk: Annotated[
        int, option("--cache-disk", panel=CACHE, text="Disk for saved state, MiB, of all models.", at_least=0)
    ] = 10240,
    cache_disk_writes: Annotated[
        int | None, option("--cache-disk-writes", panel=CACHE, text="Most MiB written an hour.", at_least=0)
    ] = None,
    no_cache_disk: Annotated[bool, option("--no-cache-disk", panel=CACHE, text="Keep nothing on disk.")] = False,
    audit: Annotated[
        float, option("--audit", panel=CACHE, text="Part of reused tokens to prove while idle.", at_least=0, at_most=1)
    ] = 0.02,
    parallel: Annotated[
        int, option("-np", "--parallel", panel=CACHE, text="Requests decoded at a time.", at_least=1)
    ] = 8,
    queue: Annotated[
        int, option("--queue", panel=CACHE, text="Requests that may wait; more are refused.", at_least=1)
    ] = 64,
    prefill_chunk: Annotated[
        int, option("--prefill-chunk", panel=CACHE, text="Most prompt tokens in one step.", at_least=1)
    ] = 512,
    deadline: Annotated[
        float | None,
        option("--deadline", panel=CACHE, text="Seconds a request may take, waiting included.", at_least=0.001),
    ] = None,
    watchdog: Annotated[
        float, option("--watchdog", panel=CACHE, text="Seconds of silence that are a hang; 0: none are.", at_least=0)
    ] = 300.0,
    ctx_size: Annotated[
        int,
        option("-c", "--ctx-size", panel=MODEL, text="Tokens of a request and its reply; 0: the model's.", at_least=0),
    ] = 0,
    live_cells: Annotated[
        int | None,
        option("--live-cells", panel=MODEL, text="Tokens of live state that all requests share.", at_least=1),
    ] = None,
    batch_size: Annotated[
        int, option("-b", "--batch-size", panel=MODEL, text="Logical batch size.", at_least=1)
    ] = 2048,
    ubatch_size: Annotated[
        int, option("-ub", "--ubatch-size", panel=MODEL, text="Physical batch size.", at_least=1)
    ] = 512,
    threads: Annotated[
        int | None, option("-t", "--threads", panel=MODEL, text="Threads; none: all cores.", at_least=1)
    ] = None,
    threads_batch: Annotated[
        int | None, option("-tb", "--threads-batch", panel=MODEL, text="For prompts.", at_least=1)
    ] = None,
    n_gpu_layers: Annotated[
        int, option("-ngl", "--n-gpu-layers", panel=MODEL, text="Layers in GPU memory; -1: all.", at_least=-1)
    ] = -1,
    flash_attn: Annotated[FlashAttention, option("-fa", "--flash-attn", panel=MODEL, text="Flash attention.")] = "auto",
    cache_type_k: Annotated[KvType, option("-ctk", "--cache-type-k", panel=MODEL, text="Type of K state.")] = "f16",
    cache_type_v: Annotated[KvType, option("-ctv", "--cache-type-v", panel=MODEL, text="Type of V state.")] = "f16",
    rope_scaling: Annotated[RopeScaling | None, option("--rope-scaling", panel=MODEL, text="RoPE scaling.")] = None,
    rope_freq_base: Annotated[float | None, option("--rope-freq-base", panel=MODEL, text="RoPE base.")] = None,
    rope_freq_scale: Annotated[float | None, option("--rope-freq-scale", panel=MODEL, text="RoPE factor.")] = None,
    yarn_orig_ctx: Annotated[int | None, option("--yarn-orig-ctx", panel=MODEL, text="YaRN: trained context.")] = None,
    yarn_ext_factor: Annotated[float | None, option("--yarn-ext-factor", panel=MODEL, text="YaRN: mix.")] = None,
    yarn_attn_factor: Annotated[float | None, option("--yarn-attn-factor", panel=MODEL, text="YaRN: scale.")] = None,
    yarn_beta_fast: Annotated[float | None, option("--yarn-beta-fast", panel=MODEL, text="YaRN: low.")] = None,
    yarn_beta_slow: Annotated[float | None, option("--yarn-beta-slow", panel=MODEL, text="YaRN: high.")] = None,
    repack: Annotated[bool, option("--repack/--no-repack", panel=MODEL, text="Rearrange weights for the CPU.")] = True,
    mmap: Annotated[bool, option("--mmap/--no-mmap", panel=MODEL, text="Map the file into memory.")] = True,
    mlock: Annotated[bool, option("--mlock", panel=MODEL, text="Keep the model in RAM.")] = False,
) -> None:
    """Serve a GGUF model to coding agents. Stops on Ctrl-C, once running replies are done."""
    model_options = ModelOptions(
        path=model or demo_model_path(),
        ctx_size=ctx_size or None,
        live_cells=live_cells,
        batch_size=batch_size,
        ubatch_size=ubatch_size,
        parallel=parallel,
        threads=threads,
        threads_batch=threads_batch,
        n_gpu_layers=n_gpu_layers,
        flash_attn=flash_attn,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        rope_scaling=rope_scaling,
        rope_freq_base=rope_freq_base,
        rope_freq_scale=rope_freq_scale,
        yarn_orig_ctx=yarn_orig_ctx,
        yarn_ext_factor=yarn_ext_factor,
        yarn_attn_factor=yarn_attn_factor,
        yarn_beta_fast=yarn_beta_fast,
        yarn_beta_slow=yarn_beta_slow,
        repack=repack,
        mmap=mmap,
        mlock=mlock,
    )
    engine_options = EngineOptions(
        cache_ram_bytes=cache_ram * MIB,
        cache_folder=None if no_cache_disk or not cache_disk else cache_dir.expanduser().absolute(),
        cache_disk_bytes=cache_disk * MIB,
        cache_disk_write_bytes_per_hour=None if cache_disk_writes is None else cache_disk_writes * MIB,
        audit_share=audit,
        queue_size=queue,
        prefill_chunk=prefill_chunk,
        deadline_seconds=deadline,
        watchdog_seconds=watchdog or None,
    )
    server_options = ServerOptions(
        host=host,
        port=port,
        api_keys=gather_keys(api_key or (), api_key_file),
        allowed_hosts=tuple(host_name(name) for name in allowed_host or ()),
        cors_origins=tuple(origin(text) for text in cors_origin or ()),
        aliases=tuple(alias or ()),
        max_body_bytes=max_body * MIB,
        chat_template=chat_template,
        echoes=exact_echo,
        masks=mask_billing,
    )
    asyncio.run(run(model_options, engine_options, server_options))


async def run(model: ModelOptions, engine: EngineOptions, server: ServerOptions) -> None:
    """Load, tell, and serve until a signal comes."""
    http.listen(server).close()  # A port that is taken is told now, and not after minutes of loading.
    with loading_bar(console, model.path.name) as on_progress:
        stack = await Stack.start(model, engine, server, on_progress, wrap=lambda e: WatchedEngine(e, console))
    await stack.serve(on_listening=lambda url: show_startup(console, url, stack.engine.info, engine))
    console.print("Stopped.")
