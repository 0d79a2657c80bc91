"""``kvstet gateway``: a proxy in front of a hosted model, or of any server that speaks the same dialects."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kvstet.api.access import gather_keys
from kvstet.api.guards import host_name, origin
from kvstet.api.recording import recording
from kvstet.api.server import DRAIN_SECONDS
from kvstet.api.sessions import VERDICTS
from kvstet.cli.console import stderr_console
from kvstet.cli.options import (
    ACCESS,
    SERVER,
    UPSTREAM,
    AllowedHosts,
    ApiKeyFile,
    ApiKeys,
    Host,
    Port,
    UpstreamDialects,
    UpstreamName,
    UpstreamProvider,
    option,
)
from kvstet.cli.recording import Record, recorder_in
from kvstet.config import MIB, ApiKey, ServerOptions
from kvstet.errors import InvalidRequest
from kvstet.gateway.building import GatewayOptions, build
from kvstet.gateway.changing.changes import known_changes
from kvstet.gateway.changing.preparer import Models
from kvstet.gateway.server import run as run_server
from kvstet.gateway.server import serve
from kvstet.gateway.upstream import CONNECT_SECONDS, READ_SECONDS, Upstream
from kvstet.traces.recorder import Recorder

console = stderr_console()

DEFAULT_PORT = 8090

CHANGING = "What is changed"


def gateway(
    context: typer.Context,
    upstream: UpstreamName,
    *,
    provider: UpstreamProvider = None,
    dialect: UpstreamDialects = None,
    key_env: Annotated[
        str | None,
        option("--key-env", panel=UPSTREAM, text="Variable with the gateway's own key. None: clients' keys pass."),
    ] = None,
    timeout: Annotated[
        float, option("--timeout", panel=UPSTREAM, text="Seconds of silence, then it is given up.", at_least=0.1)
    ] = READ_SECONDS,
    connect_timeout: Annotated[
        float, option("--connect-timeout", panel=UPSTREAM, text="Seconds to be reached in.", at_least=0.1)
    ] = CONNECT_SECONDS,
    host: Host = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    max_body: Annotated[
        int, option("--max-body", panel=SERVER, text="Largest request that is changed, MiB.", at_least=1)
    ] = 64,
    log_prompts: Annotated[
        bool, option("--log-prompts", panel=SERVER, text="Write requests into the log. They hold all that you do.")
    ] = False,
    record: Record = None,
    no_ledger: Annotated[
        bool, option("--no-ledger", panel=SERVER, text="Keep no account of what requests cost.")
    ] = False,
    api_key: ApiKeys = None,
    api_key_file: ApiKeyFile = None,
    allowed_host: AllowedHosts = None,
    cors_origin: Annotated[
        list[str] | None,
        option("--cors-origin", panel=ACCESS, text="Web page that may send what it cannot read; repeatable. *: all."),
    ] = None,
    optimise: Annotated[
        bool, option("--optimise", panel=CHANGING, text="Change requests so that the upstream's cache hits.")
    ] = False,
    ask_why: Annotated[
        bool, option("--ask-why", panel=CHANGING, text="Ask the vendor why its cache misses; --optimise does.")
    ] = False,
    without: Annotated[
        list[str] | None, option("--without", panel=CHANGING, text="Never change this, by name; repeatable.")
    ] = None,
    cut_outputs: Annotated[
        int | None,
        option("--cut-outputs", panel=CHANGING, text="Longest output of a tool, in characters.", at_least=1000),
    ] = None,
    context_length: Annotated[
        int | None,
        option("--context-length", panel=CHANGING, text="What the upstream's model takes, in tokens.", at_least=1),
    ] = None,
    model: Annotated[
        str | None, option("--model", panel=CHANGING, text="The upstream's model, whatever clients name.")
    ] = None,
    map_models: Annotated[
        list[str] | None, option("--map", panel=CHANGING, text="CLIENT=UPSTREAM: names of one model; repeatable.")
    ] = None,
) -> None:
    """Pass requests on to a hosted model, and see what its cache does. Changes nothing unless asked to."""
    options = GatewayOptions(
        upstream=upstream,
        provider=provider,
        dialects=tuple(dialect or ()),
        key=key_of(key_env),
        models=models_of(model, map_models or ()),
        optimises=optimise,
        asks_why=ask_why,
        without=known_changes(without or ()),
        max_output_characters=cut_outputs,
        num_context_tokens=context_length,
        logs_prompts=log_prompts,
        keeps_ledger=not no_ledger,
        read_seconds=timeout,
        connect_seconds=connect_timeout,
    )
    server = ServerOptions(
        host=host,
        port=port,
        api_keys=gather_keys(api_key or (), api_key_file) if key_env else no_keys(context),
        allowed_hosts=tuple(map(host_name, allowed_host or ())),
        cors_origins=tuple(map(origin, cors_origin or ())),
        max_body_bytes=max_body * MIB,
    )
    with recorder_in(record, "gateway", console) as recorder:
        run_server(run(options, server, recorder))


def no_keys(context: typer.Context) -> tuple[ApiKey, ...]:
    """InvalidRequest where somebody wants clients to send a key of the gateway. What the environment holds for other
    commands is not meant."""
    for name in ("api_key", "api_key_file"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InvalidRequest("Clients' keys pass to the upstream, so they cannot be the gateway's: give --key-env.")
    return ()


def key_of(variable: str | None) -> str | None:
    """The key in a variable of the environment. InvalidRequest: there is none."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise InvalidRequest(f"The variable {variable} holds no key.")
    return key


def models_of(default: str | None, pairs: Sequence[str]) -> Models:
    """Raises InvalidRequest for a pair that is none."""
    split = [pair.partition("=") for pair in pairs]
    for client, sign, upstream in split:
        if not (client and sign and upstream):
            raise InvalidRequest(f"--map takes CLIENT=UPSTREAM, and not {client + sign + upstream!r}.")
    return Models(default, {client: upstream for client, _, upstream in split})


async def run(options: GatewayOptions, server: ServerOptions, recorder: Recorder | None = None) -> None:
    """Serve until a signal comes."""
    logging.getLogger(VERDICTS).setLevel(logging.INFO)
    gateway = build(options, server)
    try:
        await serve(
            recording(gateway, recorder),
            gateway,
            server,
            drain_seconds=DRAIN_SECONDS,
            on_listening=lambda url: show_startup(console, url, gateway.upstream, options, server),
        )
    finally:
        await gateway.close()
    console.print("Stopped.")


def show_startup(
    console: Console, url: str, upstream: Upstream, options: GatewayOptions, server: ServerOptions
) -> None:
    """Where it listens, where it goes, and what it does on the way."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("address", escape(f"{url}/v1 (OpenAI), {url} (Anthropic)"))
    bases: dict[str, list[str]] = {}
    for dialect, base in upstream.bases.items():
        bases.setdefault(base, []).append(dialect)
    for base, dialects in bases.items():
        table.add_row("upstream", escape(f"{upstream.title}: {base} ({', '.join(dialects)})"))
    named = ", ".join(key.name for key in server.api_keys)
    table.add_row("keys", escape(f"its own; clients send one of {named}" if options.key else "clients' own"))
    table.add_row("changes", escape(changes_line(options)))
    if options.logs_prompts:
        table.add_row("log", "[yellow]has the text of all requests[/yellow]")
    console.print(table, highlight=False)


def changes_line(options: GatewayOptions) -> str:
    """What is changed in requests."""
    if options.optimises:
        left_out = f" but {', '.join(sorted(options.without))}" if options.without else ""
        return f"all that lets caches hit{left_out}; each is logged"
    parts = [
        *(["models' names"] if options.models else []),
        *(["the question why the cache misses"] if options.asks_why else []),
    ]
    return ", ".join(parts) or "nothing: requests pass byte for byte"
