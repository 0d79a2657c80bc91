"""Qwen Code: Chat Completions, pointed by a system settings file, which lies over the user's and the project's."""

from __future__ import annotations

import json

from kvstet.cli.clients.client import FOLDER, PATIENCE_MILLISECONDS, Client, Setup, Target


def setup(target: Target) -> Setup:
    # A provider's entry and not only the variables: if the user has a model of this name, its entry would prevail.
    entry = {
        "id": target.model,
        "name": target.model,
        "baseUrl": target.openai_url,
        "envKey": "OPENAI_API_KEY",
        "generationConfig": {
            "contextWindowSize": target.context_length,
            "timeout": PATIENCE_MILLISECONDS,
            "samplingParams": {"max_tokens": target.max_reply_tokens},
        },
    }
    settings = {
        "$version": 4,
        "general": {"enableAutoUpdate": False},
        "privacy": {"usageStatisticsEnabled": False},
        "security": {"auth": {"selectedType": "openai"}},
        "model": {"name": target.model},
        "modelProviders": {"openai": [entry]},
        "memory": {"enableManagedAutoMemory": False, "enableManagedAutoDream": False, "enableAutoSkill": False},
    }
    return Setup(
        environment={
            "QWEN_CODE_SYSTEM_SETTINGS_PATH": f"{FOLDER}/settings.json",
            "OPENAI_BASE_URL": target.openai_url,
            "OPENAI_API_KEY": target.api_key,
            "OPENAI_MODEL": target.model,
        },
        files={"settings.json": json.dumps(settings, indent=2) + "\n"},
    )


QWEN = Client(
    names=("qwen", "qwen-code"),
    title="Qwen Code",
    dialect="Chat",
    executables=("qwen",),
    install="Install it with `npm install -g @qwen-code/qwen-code`.",
    setup=setup,
    switched_off=(
        "automatic memory (`memory.*`): after each turn it asks the model what to remember, and what it has remembered"
        " changes the system prompt",
        "updates and usage statistics",
    ),
    gives_up=(
        "your other providers, and what an administrator has set in the system's settings file",
        "what is learnt in these sessions; what was remembered before may not be shown to the model either",
        "nothing can be done about the git status in its system prompt: what a resumed session can reuse ends there",
    ),
    num_own_tokens=17_000,
)
