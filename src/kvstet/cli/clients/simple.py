"""Clients for which a few variables are all: Copilot, mini-swe-agent, and whatever reads the usual variables."""

from __future__ import annotations

from kvstet.cli.clients.client import Client, Setup, Target


def copilot(target: Target) -> Setup:
    return Setup(
        environment={
            "COPILOT_PROVIDER_BASE_URL": target.openai_url,
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_WIRE_API": "completions",
            "COPILOT_PROVIDER_API_KEY": target.api_key,
            "COPILOT_MODEL": target.model,
            "COPILOT_PROVIDER_MAX_PROMPT_TOKENS": str(target.context_length - target.max_reply_tokens),
            "COPILOT_PROVIDER_MAX_OUTPUT_TOKENS": str(target.max_reply_tokens),
            "COPILOT_OFFLINE": "true",
            "COPILOT_AUTO_UPDATE": "false",
        }
    )


def mini(target: Target) -> Setup:
    return Setup(
        environment={
            "OPENAI_API_BASE": target.openai_url,
            "OPENAI_BASE_URL": target.openai_url,
            "OPENAI_API_KEY": target.api_key,
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            # Else it asks for a model and a key, and refuses a model of which it knows no price.
            "MSWEA_CONFIGURED": "true",
            "MSWEA_COST_TRACKING": "ignore_errors",
        },
        arguments=("-m", f"openai/{target.model}"),
    )


def openai(target: Target) -> Setup:
    return Setup(
        environment={
            "OPENAI_BASE_URL": target.openai_url,
            "OPENAI_API_BASE": target.openai_url,
            "OPENAI_API_KEY": target.api_key,
            "OPENAI_MODEL": target.model,
        }
    )


def anthropic(target: Target) -> Setup:
    return Setup(
        environment={
            "ANTHROPIC_BASE_URL": target.url,
            "ANTHROPIC_API_KEY": target.api_key,
            "ANTHROPIC_AUTH_TOKEN": target.api_key,
            "ANTHROPIC_MODEL": target.model,
        }
    )


COPILOT = Client(
    names=("copilot",),
    title="GitHub Copilot CLI",
    dialect="Chat",
    executables=("copilot",),
    install="Install it with `npm install -g @github/copilot`.",
    setup=copilot,
    switched_off=("everything that asks GitHub (COPILOT_OFFLINE), and updates",),
    gives_up=("GitHub's own models, and its tools that need a login",),
    num_own_tokens=12_000,
)

MINI = Client(
    names=("mini", "mini-swe-agent"),
    title="mini-swe-agent",
    dialect="Chat",
    executables=("mini", "mini-swe-agent"),
    install="Install it with `pip install mini-swe-agent`, in an environment of its own.",
    setup=mini,
    switched_off=("the reckoning of costs, and the download of prices",),
    num_own_tokens=500,
)

ENV_OPENAI = Client(
    names=("env-openai",),
    title="any client that reads OpenAI's variables",
    dialect="any",
    executables=(),
    install="",
    setup=openai,
)

ENV_ANTHROPIC = Client(
    names=("env-anthropic",),
    title="any client that reads Anthropic's variables",
    dialect="Messages",
    executables=(),
    install="",
    setup=anthropic,
)
