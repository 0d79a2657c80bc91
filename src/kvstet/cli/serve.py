"""``kvstet serve``: models behind the endpoints of all dialects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import platformdirs
import typer
from rich.markup import escape

from kvstet.api import create_app
from kvstet.api import server as http
from kvstet.api.access import gather_keys
from kvstet.api.guards import host_name, origin
from kvstet.api.recording import recording
from kvstet.api.sessions import VERDICTS
from kvstet.cli.console import stderr_console
from kvstet.cli.models.configuration import BadModels, Settings, Values, values_of
from kvstet.cli.models.hub import fetch
from kvstet.cli.models.listing import Source, check_unique, located, lora_of, source_of
from kvstet.cli.models.memory import MachineMemory
from kvstet.cli.models.pool import ModelPool
from kvstet.cli.options import ACCESS, SERVER, AllowedHosts, ApiKeyFile, ApiKeys, Host, Port, option
from kvstet.cli.recording import Record, recorder_in
from kvstet.cli.stack import LoadedModel
from kvstet.cli.startup import show_startup
from kvstet.cli.watch import WatchedEngine, loading_bar
from kvstet.config import (
    MIB,
    Anticipation,
    EngineOptions,
    Fidelity,
    FlashAttention,
    KvType,
    ModelOptions,
    RopeScaling,
    ServedOptions,
    ServerOptions,
)
from kvstet.context.equivalent.catalogue import names_of
from kvstet.demo.model import demo_model_path
from kvstet.traces.recorder import Recorder

console = stderr_console()

DEFAULT_CACHE_FOLDER = platformdirs.user_cache_path("kvstet") / "state"
CACHE_FOLDER_VARIABLE = "KVSTET_CACHE_DIR"

MODELS, MODEL, CACHE = "Models", "Model (names as in llama.cpp)", "Cache and scheduling"

AUDIT_DELAY_SECONDS = 30.0
"""Most tools of an agent that is at work have answered by then."""

UNLOAD_SECONDS = 900.0
"""How long a model may rest where there are several, unless the user says otherwise."""


def serve(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Argument(help="A GGUF file or hf:OWNER/REPO[:QUANT]; none: the bundled SmolLM2-135M.")
    ] = None,
    *,
    models: Annotated[
        list[str] | None, option("--model", panel=MODELS, text="Further model, [NAME=]FILE; repeatable.")
    ] = None,
    config: Annotated[Path | None, option("--config", panel=MODELS, text="Options of server and models: TOML.")] = None,
    alias: Annotated[
        list[str] | None, option("-a", "--alias", panel=MODELS, text="Further name of the model; repeatable.")
    ] = None,
    preload: Annotated[
        list[str] | None,
        option("--preload", panel=MODELS, text="Model to load at the start; repeatable. None: the first."),
    ] = None,
    unload_after: Annotated[
        float | None,
        option(
            "--unload-after", panel=MODELS, text="Seconds without a request, then it is unloaded. 0: never.", at_least=0
        ),
    ] = None,
    lora: Annotated[
        list[str] | None, option("--lora", panel=MODELS, text="LoRA adapter, FILE[:SCALE]; repeatable.")
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key: ApiKeys = None,
    api_key_file: ApiKeyFile = None,
    allowed_host: AllowedHosts = None,
    cors_origin: Annotated[
        list[str] | None,
        option("--cors-origin", panel=ACCESS, text="Web page that may use the server; repeatable. *: all."),
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
    fidelity: Annotated[
        Fidelity, option("--fidelity", panel=SERVER, text="What requests get that do not say what they want.")
    ] = "exact",
    record: Record = None,
    no_substitute: Annotated[
        list[str] | None,
        option("--no-substitute", panel=SERVER, text="Never substitute this, at any fidelity; repeatable."),
    ] = None,
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
    anticipate: Annotated[
        Anticipation,
        option("--anticipate", panel=CACHE, text="Compute the next prompt while idle; auto: not on battery."),
    ] = "auto",
    anticipate_budget: Annotated[
        float,
        option("--anticipate-budget", panel=CACHE, text="Tokens ahead in vain, per token of requests.", at_least=0),
    ] = 1.0,
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
    swa_full: Annotated[
        bool, option("--swa-full", panel=MODEL, text="Keep all state of layers with a sliding window.")
    ] = False,
    repack: Annotated[bool, option("--repack/--no-repack", panel=MODEL, text="Rearrange weights for the CPU.")] = True,
    mmap: Annotated[bool, option("--mmap/--no-mmap", panel=MODEL, text="Map the file into memory.")] = True,
    mlock: Annotated[bool, option("--mlock", panel=MODEL, text="Keep the model in RAM.")] = False,
) -> None:
    """Serve GGUF models to coding agents. Stops on Ctrl-C, once running replies are done."""
    settings = Settings.gather(context, values_of(locals()), config)
    values = settings.of_server()
    server = server_options(values)  # First: what is wrong about access is told before anything is downloaded.
    served = served_options(settings, [*([model] if model else []), *(models or [])])
    with recorder_in(values["record"], "serve", console) as recorder:
        asyncio.run(
            run(
                served,
                server,
                preload=values["preload"] or (),
                unload_after_seconds=values["unload_after"],
                recorder=recorder,
            )
        )


def served_options(settings: Settings, named: Sequence[str]) -> list[ServedOptions]:
    """The models, those of the command line first. Raises BadModels and HubError."""
    sources = [source_of(text) for text in named]
    taken = {source.name for source in sources}
    sources += [Source(path, name) for name, path in settings.file.paths.items() if name not in taken]
    sources = sources or [Source(str(demo_model_path()))]
    if len(sources) > 1:
        for name in ("alias", "lora"):
            if name in settings.given:
                raise BadModels(f"--{name} is for one model, and {len(sources)} are served: use --config.")
    found = [one_of(path, name, settings.of_model(name or "")) for name, path in located(sources, fetch)]
    check_unique([name for options in found for name in {options.label, *options.aliases}])
    return found


def one_of(path: Path, name: str | None, values: Values) -> ServedOptions:
    """One model, with its options."""
    return ServedOptions(
        model_options(path, values), engine_options(values), name, tuple(values["alias"] or ()), values["chat_template"]
    )


def model_options(path: Path, values: Values) -> ModelOptions:
    """Options that libllama takes have the same names."""
    same = {option.name: values[option.name] for option in fields(ModelOptions) if option.name in values}
    special: Values = {"ctx_size": values["ctx_size"] or None, "lora": tuple(map(lora_of, values["lora"] or ()))}
    return ModelOptions(path, **(same | special))


def engine_options(values: Values) -> EngineOptions:
    """Scheduling and cache."""
    keeps_disk = values["cache_disk"] and not values["no_cache_disk"]
    writes = values["cache_disk_writes"]
    return EngineOptions(
        cache_ram_bytes=values["cache_ram"] * MIB,
        cache_folder=Path(values["cache_dir"]).expanduser().absolute() if keeps_disk else None,
        cache_disk_bytes=values["cache_disk"] * MIB,
        cache_disk_write_bytes_per_hour=None if writes is None else writes * MIB,
        audit_share=values["audit"],
        audit_delay_seconds=AUDIT_DELAY_SECONDS,
        anticipate_share=values["anticipate_budget"] if values["anticipate"] == "auto" else 0.0,
        queue_size=values["queue"],
        prefill_chunk=values["prefill_chunk"],
        deadline_seconds=values["deadline"],
        watchdog_seconds=values["watchdog"] or None,
    )


def server_options(values: Values) -> ServerOptions:
    """Where and whom it serves. Raises BadAccess and InvalidRequest."""
    return ServerOptions(
        host=values["host"],
        port=values["port"],
        api_keys=gather_keys(values["api_key"] or (), values["api_key_file"]),
        allowed_hosts=tuple(host_name(name) for name in values["allowed_host"] or ()),
        cors_origins=tuple(origin(text) for text in values["cors_origin"] or ()),
        max_body_bytes=values["max_body"] * MIB,
        echoes=values["exact_echo"],
        masks=values["mask_billing"],
        fidelity=values["fidelity"],
        no_substitute=tuple(sorted(names_of(values["no_substitute"] or (), param="--no-substitute"))),
    )


async def run(
    models: Sequence[ServedOptions],
    server: ServerOptions,
    *,
    preload: Sequence[str] = (),
    unload_after_seconds: float | None = None,
    recorder: Recorder | None = None,
) -> None:
    """Load the first model, or those of ``preload``; tell, and serve until a signal comes.

    ``unload_after_seconds``: 0 is never; None is never for one model, and a while for several.
    """
    if unload_after_seconds is None:
        unload_after_seconds = UNLOAD_SECONDS if len(models) > 1 else 0
    logging.getLogger(VERDICTS).setLevel(logging.INFO)
    http.listen(server).close()  # A port that is taken is told now, and not after minutes of loading.

    async def load(options: ServedOptions) -> LoadedModel:
        with loading_bar(console, options.model.path.name) as on_progress:
            return await LoadedModel.load(options, server, on_progress, wrap=lambda e: WatchedEngine(e, console))

    pool = ModelPool(models, load, MachineMemory(), unload_after_seconds=unload_after_seconds or None, say=tell)
    try:
        await pool.preload(preload or [None])
        await http.serve(
            recording(create_app(pool, server), recorder),
            pool,
            server,
            on_listening=lambda url: show_startup(console, url, list(zip(models, pool.statuses(), strict=True))),
        )
    finally:
        await pool.close()
    console.print("Stopped.")


def tell(text: str) -> None:
    """A line of news."""
    console.print(f"[dim]{time.strftime('%X')}[/dim] {escape(text)}", highlight=False)
