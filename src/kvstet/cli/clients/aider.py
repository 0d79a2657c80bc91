"""aider: Chat Completions without tools, pointed by options and an .env file that is read last."""

from __future__ import annotations

import json

from kvstet.cli.clients.client import FOLDER, PATIENCE_MILLISECONDS, Client, Setup, Target


def setup(target: Target) -> Setup:
    model = f"openai/{target.model}"
    metadata = {
        model: {
            "litellm_provider": "openai",
            "mode": "chat",
            "max_input_tokens": target.context_length - target.max_reply_tokens,
            "max_output_tokens": target.max_reply_tokens,
            "input_cost_per_token": 0,
            "output_cost_per_token": 0,
        }
    }
    variables = {
        "OPENAI_API_KEY": target.api_key,
        "OPENAI_API_BASE": target.openai_url,
        # Stands over a key in .aider.conf.yml.
        "AIDER_OPENAI_API_KEY": target.api_key,
    }
    return Setup(
        environment=variables | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        arguments=(
            *("--model", model, "--weak-model", model, "--editor-model", model),
            *("--openai-api-base", target.openai_url),
            # An .env file in the project stands over the environment, and the file named here over both.
            *("--env-file", f"{FOLDER}/env", "--model-metadata-file", f"{FOLDER}/metadata.json"),
            *("--timeout", str(PATIENCE_MILLISECONDS // 1000)),
            *("--map-refresh", "files"),
            *("--no-show-model-warnings", "--no-check-update", "--no-analytics"),
        ),
        files={
            "env": "".join(f"{name}={quoted(value)}\n" for name, value in variables.items()),
            "metadata.json": json.dumps(metadata, indent=2) + "\n",
        },
    )


def quoted(value: str) -> str:
    """As python-dotenv reads it."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


AIDER = Client(
    names=("aider",),
    title="aider",
    dialect="Chat",
    executables=("aider",),
    install="Install it with `pip install aider-chat`, in an environment of its own.",
    setup=setup,
    switched_off=(
        "a new repository map with each message (`--map-refresh files`): it stands before the conversation; now it"
        " changes with the files in the chat only",
        "the update check, analytics, and the download of prices",
    ),
    gives_up=(
        "an `env-file` or `model-metadata-file` in your configuration",
        "much of the cache even so: aider puts files and reminders behind each message, and moves them with the next",
    ),
    num_own_tokens=1_500,
)
