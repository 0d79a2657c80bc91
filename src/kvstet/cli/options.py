"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kvstet.cli.clients.client import KEY_VARIABLE

KEY_FILE_VARIABLE = "KVSTET_API_KEY_FILE"

SERVER, ACCESS, UPSTREAM = "Server", "Access", "Upstream"


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


Host = Annotated[str, option("--host", panel=SERVER, text="Address to bind.")]
Port = Annotated[int, option("--port", panel=SERVER, text="Port; 0 takes a free one.", at_least=0, at_most=65535)]
ApiKeys = Annotated[
    list[str] | None,
    option("--api-key", panel=ACCESS, text="Key that clients must send; repeatable.", variable=KEY_VARIABLE),
]
ApiKeyFile = Annotated[
    Path | None,
    option("--api-key-file", panel=ACCESS, text="Named keys, with limits: TOML.", variable=KEY_FILE_VARIABLE),
]
AllowedHosts = Annotated[
    list[str] | None,
    option("--allowed-host", panel=ACCESS, text="Further name of this server; repeatable. *: any."),
]
UpstreamName = Annotated[
    str, option("--upstream", panel=UPSTREAM, text="Name of a provider (anthropic, openai ...), or a base URL.")
]
UpstreamProvider = Annotated[
    str | None, option("--provider", panel=UPSTREAM, text="Whose rules and prices hold at a URL.")
]
UpstreamDialects = Annotated[
    list[str] | None,
    option("--dialect", panel=UPSTREAM, text="It speaks this: chat, responses or messages; repeatable."),
]
