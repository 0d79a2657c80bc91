"""opencode: Chat Completions, pointed by configuration in a variable, which is merged over all of its files."""

from __future__ import annotations

import json

from kvstet.cli.clients.client import Client, Setup, Target


def setup(target: Target) -> Setup:
    model = {
        "name": target.model,
        "tool_call": True,
        "reasoning": True,
        # Reasoning goes back to the server with the conversation; without it, every reply would be cut off from it.
        "interleaved": {"field": "reasoning_content"},
        "limit": {"context": target.context_length, "output": target.max_reply_tokens},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "kvstet",
        "options": {"baseURL": target.openai_url, "apiKey": target.api_key, "timeout": False},
        "models": {target.model: model},
    }
    config = {
        "$schema": "https://opencode.ai/config.json",
        "autoupdate": False,
        "model": f"kvstet/{target.model}",
        "small_model": f"kvstet/{target.model}",
        "provider": {"kvstet": provider},
        "compaction": {"prune": False},
    }
    return Setup(
        environment={
            "OPENCODE_CONFIG_CONTENT": json.dumps(config),
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_PRUNE": "1",
        }
    )


OPENCODE = Client(
    names=("opencode",),
    title="opencode",
    dialect="Chat",
    executables=("opencode",),
    install="Install it with `npm install -g opencode-ai`.",
    setup=setup,
    switched_off=(
        "pruning (`compaction.prune`): it blanks old tool results in the middle of the conversation, and all behind"
        " the first of them would be computed again",
        "updates",
    ),
    gives_up=(
        "an OPENCODE_CONFIG_CONTENT of your own",
        "the room that pruning makes; conversations are compacted sooner",
    ),
    num_own_tokens=8_000,
)
