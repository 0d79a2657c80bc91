"""What a user can set, as plain values; the names are the ones that llama.cpp's users know."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

KvType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
FlashAttention = Literal["auto", "on", "off"]
Anticipation = Literal["auto", "off"]
Fidelity = Literal["exact", "equivalent", "approximate"]
"""As in `kvstet.types`."""
RopeScaling = Literal["none", "linear", "yarn", "longrope"]

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Lora:
    """An adapter on a model's weights."""

    path: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Options of the model and its context. None means: as the model file or libllama says."""

    path: Path
    ctx_size: int | None = None
    """Most tokens of one request, prompt and reply together; None: what the model was trained for."""
    live_cells: int | None = None
    """Token cells of live state shared by all requests; None: room for a few conversations, within memory."""
    batch_size: int = 2048
    ubatch_size: int = 512
    parallel: int = 8
    """Requests that decode at the same time."""
    threads: int | None = None
    threads_batch: int | None = None
    n_gpu_layers: int = -1
    """Layers to keep in GPU memory; -1: all of them, where there is a GPU."""
    flash_attn: FlashAttention = "auto"
    cache_type_k: KvType = "f16"
    cache_type_v: KvType = "f16"
    swa_full: bool = False
    """Keep the state of all tokens in layers with a sliding window too: more memory, and prompts resume anywhere."""
    rope_scaling: RopeScaling | None = None
    rope_freq_base: float | None = None
    rope_freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_fast: float | None = None
    yarn_beta_slow: float | None = None
    repack: bool = True
    """Let libllama rearrange weights for this CPU's widest instructions."""
    mmap: bool = True
    mlock: bool = False
    lora: tuple[Lora, ...] = ()
    """Adapters, all of them in effect for every request."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How requests are scheduled, and how much the cache may keep."""

    cache_ram_bytes: int = 2048 * MIB
    cache_folder: Path | None = None
    """Where state is kept on disk, for all models; None: nowhere."""
    cache_disk_bytes: int = 10 * 1024 * MIB
    """Most bytes in that folder."""
    cache_disk_write_bytes_per_hour: int | None = None
    """Spares the disk; None: no limit."""
    audit_share: float = 0.0
    """Part of the reused tokens that are computed again while idle, to prove that state is right; 0: none."""
    audit_delay_seconds: float = 0.0
    """How long nobody must have asked before an audit begins."""
    anticipate_share: float = 0.0
    """Tokens that may be computed ahead in vain while idle, per token that requests have computed; 0: none."""
    queue_size: int = 64
    """Requests that may wait; one more is refused with 429."""
    prefill_chunk: int = 512
    """Most prompt tokens in one step, so that running replies keep flowing."""
    deadline_seconds: float | None = None
    """Time a request may take, waiting included; None: as long as it needs."""
    watchdog_seconds: float | None = 300.0
    """Silence over work after which the engine's process hangs, if no step took a tenth of it; None: it never does."""


@dataclass(frozen=True, slots=True)
class ServedOptions:
    """One of the models of a server."""

    model: ModelOptions
    engine: EngineOptions = field(default_factory=EngineOptions)
    name: str | None = None
    """None: what the file calls itself; only for a model that is served alone."""
    aliases: tuple[str, ...] = ()
    chat_template: str | None = None
    """Name of a built-in template, a file, or the template itself; None: the model's own."""

    @property
    def label(self) -> str:
        """What to call it before its file was read."""
        return self.name or self.model.path.stem


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that clients may send, and how much may be asked for with it. None: no limit."""

    name: str
    """What logs and metrics call it; the key itself stands in neither."""
    secret: str = field(repr=False)
    max_concurrent: int | None = None
    """Requests under way at a time."""
    requests_per_minute: int | None = None
    fidelity: Fidelity | None = None
    """None: the server's."""


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How the HTTP server listens and what it lets in."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: tuple[ApiKey, ...] = ()
    """Clients must send one of them; none: nothing is asked for."""
    allowed_hosts: tuple[str, ...] = ()
    """Further names under which the server is reached; ``*``: any. See `kvstet.api.guards.HostGuard`."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages that may use the server from a browser; ``*``: all."""
    max_body_bytes: int = 64 * MIB
    echoes: bool = True
    """Put the model's own replies back into prompts as it generated them."""
    masks: bool = True
    """Keep Claude Code's billing header from the model."""
    fidelity: Fidelity = "exact"
    """How faithfully prompts are read, where neither request nor key says so."""
    no_substitute: tuple[str, ...] = ()
    """What is never substituted, by name; see `kvstet.context.equivalent.catalogue`."""
