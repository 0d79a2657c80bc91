"""``kvstet record``: a gateway that changes nothing, and writes down what passes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvstet.api.guards import host_name
from kvstet.cli.gateway import DEFAULT_PORT, console, run
from kvstet.cli.options import AllowedHosts, Host, Port, UpstreamDialects, UpstreamName, UpstreamProvider
from kvstet.cli.recording import recorder_in
from kvstet.config import ServerOptions
from kvstet.gateway.building import GatewayOptions
from kvstet.gateway.server import run as run_server


def record(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File, or a folder for a new one.")],
    upstream: UpstreamName,
    *,
    provider: UpstreamProvider = None,
    dialect: UpstreamDialects = None,
    host: Host = "127.0.0.1",
    port: Port = DEFAULT_PORT,
    allowed_host: AllowedHosts = None,
) -> None:
    """Record the session of a client: point it here instead of at its model, and all passes byte for byte. What is
    said stands in the file, without keys; `kvstet trace redact --text` takes the rest out."""
    options = GatewayOptions(upstream=upstream, provider=provider, dialects=tuple(dialect or ()), keeps_ledger=False)
    server = ServerOptions(host=host, port=port, allowed_hosts=tuple(map(host_name, allowed_host or ())))
    with recorder_in(output, "record", console) as recorder:
        run_server(run(options, server, recorder))
