"""The clients that ``kvstet launch`` knows, one module or a few lines each."""

from __future__ import annotations

from kvstet.cli.clients.aider import AIDER
from kvstet.cli.clients.claude import CLAUDE
from kvstet.cli.clients.client import FOLDER, KEY_VARIABLE, Client, Setup, Target
from kvstet.cli.clients.cline import CLINE
from kvstet.cli.clients.codex import CODEX
from kvstet.cli.clients.opencode import OPENCODE
from kvstet.cli.clients.pi import PI
from kvstet.cli.clients.qwen import QWEN
from kvstet.cli.clients.simple import COPILOT, ENV_ANTHROPIC, ENV_OPENAI, MINI

CLIENTS = (CLAUDE, CODEX, OPENCODE, PI, CLINE, QWEN, AIDER, COPILOT, MINI, ENV_OPENAI, ENV_ANTHROPIC)


def client_named(name: str) -> Client | None:
    """The client that goes by this name; None: there is none."""
    return next((client for client in CLIENTS if name.lower() in client.names), None)


__all__ = ["CLIENTS", "FOLDER", "KEY_VARIABLE", "Client", "Setup", "Target", "client_named"]
