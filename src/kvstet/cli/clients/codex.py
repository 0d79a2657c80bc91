"""Codex: OpenAI's Responses, pointed by ``-c`` options, which lie over config.toml."""

from __future__ import annotations

import json

from kvstet.cli.clients.client import KEY_VARIABLE, PATIENCE_MILLISECONDS, Client, Setup, Target

COMPACT_PERCENT = 85
"""Of the context: Codex compacts between turns only, and a turn adds something."""


def setup(target: Target) -> Setup:
    provider = {
        "name": text("kvstet"),
        "base_url": text(target.openai_url),
        "env_key": text(KEY_VARIABLE),
        "wire_api": text("responses"),
        "supports_websockets": "false",
        "stream_idle_timeout_ms": str(PATIENCE_MILLISECONDS),
    }
    options = {
        "model": text(target.model),
        "model_provider": text("kvstet"),
        "model_providers.kvstet": "{" + ", ".join(f"{key} = {value}" for key, value in provider.items()) + "}",
        "model_context_window": str(target.context_length),
        "model_auto_compact_token_limit": str(target.context_length * COMPACT_PERCENT // 100),
        "web_search": text("disabled"),
        "check_for_update_on_startup": "false",
        "analytics.enabled": "false",
    }
    arguments = tuple(word for key, value in options.items() for word in ("-c", f"{key}={value}"))
    return Setup(environment={KEY_VARIABLE: target.api_key}, arguments=arguments)


def text(value: str) -> str:
    """As TOML; its strings are those of JSON."""
    return json.dumps(value, ensure_ascii=False)


CODEX = Client(
    names=("codex",),
    title="Codex",
    dialect="Responses",
    executables=("codex",),
    install="Install it with `npm install -g @openai/codex`.",
    setup=setup,
    switched_off=(
        "web search: OpenAI's servers would do it, and a tool that nobody runs only takes room in the prompt",
        "the update check and analytics",
    ),
    gives_up=("the ChatGPT login; it stays as it is for when you start Codex yourself",),
    num_own_tokens=9_000,
)
