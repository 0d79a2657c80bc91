"""What launching a client amounts to, as a shell script that does the same."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence

from kvstet.cli.clients.client import FOLDER, Client, Setup, Target

END = "END_OF_FILE"


def script(client: Client, target: Target, setup: Setup, command: Sequence[str], remarks: Iterable[str]) -> str:
    """``command``: what is started, setup's arguments included; empty: nothing, the variables are all."""
    lines = [
        f"# {client.title} -> {target.url}, {target.model}, context of {target.context_length:,} tokens",
        *(f"# Note: {remark}" for remark in remarks),
        *(f"# Switched off: {what}" for what in client.switched_off),
        *(f"# Given up: {what}" for what in client.gives_up),
    ]
    if setup.files:
        lines.append('folder="$(mktemp -d)"  # kvstet removes it when the client ends')
    for name, content in setup.files.items():
        lines += [f"cat > {word(f'{FOLDER}/{name}')} <<'{END}'", content.removesuffix("\n"), END]
    if setup.hidden:
        lines.append(f"unset {' '.join(setup.hidden)}")
    lines += [f"export {name}={word(value)}" for name, value in setup.environment.items()]
    if command:
        lines.append(" ".join(map(word, command)))
    return "\n".join(line.replace("\n", " ") if line.startswith("#") else line for line in lines)


def word(text: str) -> str:
    """Quoted for a POSIX shell; the folder is what ``$folder`` says."""
    return '"$folder"'.join(shlex.quote(part) if part else "" for part in text.split(FOLDER)) or "''"
