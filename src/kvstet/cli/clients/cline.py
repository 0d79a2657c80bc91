"""Cline's command line: Chat Completions, pointed by a settings file of providers for this run."""

from __future__ import annotations

import json

from kvstet.cli.clients.client import FOLDER, PATIENCE_MILLISECONDS, Client, Setup, Target

PROVIDER = "openai-compatible"


def setup(target: Target) -> Setup:
    settings = {
        "provider": PROVIDER,
        "apiKey": target.api_key,
        "baseUrl": target.openai_url,
        "model": target.model,
        "timeout": PATIENCE_MILLISECONDS,
    }
    entry = {"settings": settings, "updatedAt": "2026-01-01T00:00:00.000Z", "tokenSource": "manual"}
    providers = {"version": 1, "lastUsedProvider": PROVIDER, "providers": {PROVIDER: entry}}
    model = {
        "id": target.model,
        "name": target.model,
        "contextWindow": target.context_length,
        "maxInputTokens": target.context_length - target.max_reply_tokens,
        "maxTokens": target.max_reply_tokens,
    }
    models = {"version": 1, "providers": {PROVIDER: {"models": {target.model: model}}}}
    return Setup(
        environment={
            "CLINE_PROVIDER_SETTINGS_PATH": f"{FOLDER}/providers.json",
            # A hub that runs already has the user's providers, and one that this run started would outlive it.
            "CLINE_SESSION_BACKEND_MODE": "local",
            "CLINE_NO_AUTO_UPDATE": "1",
            "CLINE_TELEMETRY_DISABLED": "1",
            "CLINE_DISABLE_TELEMETRY": "1",
        },
        arguments=("-P", PROVIDER, "-m", target.model),
        # Cline looks for models.json beside the file of providers.
        files={
            "providers.json": json.dumps(providers, indent=2) + "\n",
            "models.json": json.dumps(models, indent=2) + "\n",
        },
    )


CLINE = Client(
    names=("cline",),
    title="Cline (command line)",
    dialect="Chat",
    executables=("cline",),
    install="Install it with `npm install -g cline`.",
    setup=setup,
    switched_off=("updates and telemetry",),
    gives_up=("your other providers, and the hub: sessions run in Cline's own process, and `--zen` does not work",),
    num_own_tokens=6_000,
)
