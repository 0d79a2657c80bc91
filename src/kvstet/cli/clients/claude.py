"""Claude Code: Anthropic's Messages, pointed by variables."""

from __future__ import annotations

import json

from kvstet.cli.clients.client import FOLDER, PATIENCE_MILLISECONDS, Client, Setup, Target

HIDDEN = (
    "ANTHROPIC_API_KEY",
    "ANTHROPIC_CUSTOM_HEADERS",
    "ANTHROPIC_UNIX_SOCKET",
    "CLAUDE_CODE_API_BASE_URL",
    "CLAUDE_CODE_OAUTH_TOKEN",
    "CLAUDE_CODE_USE_BEDROCK",
    "CLAUDE_CODE_USE_FOUNDRY",
    "CLAUDE_CODE_USE_VERTEX",
)
"""Would be preferred to the server, or sent to it."""


def setup(target: Target) -> Setup:
    context, reply = str(target.context_length), str(target.max_reply_tokens)
    environment = {
        "ANTHROPIC_BASE_URL": target.url,
        "ANTHROPIC_AUTH_TOKEN": target.api_key,
        "ANTHROPIC_MODEL": target.model,
        # Aliases, titles and sub-agents ask for models by these names.
        "ANTHROPIC_DEFAULT_OPUS_MODEL": target.model,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": target.model,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": target.model,
        "ANTHROPIC_SMALL_FAST_MODEL": target.model,
        "CLAUDE_CODE_SUBAGENT_MODEL": target.model,
        # A model that it does not know is taken for one of 200,000 tokens.
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": context,
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": context,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": reply,
        "API_TIMEOUT_MS": str(PATIENCE_MILLISECONDS),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    # Its settings may set variables as well, and those prevail over the environment's. What --settings names prevails
    # over all settings but an administrator's; there, empty is the same as not set.
    settings = {"env": environment | dict.fromkeys(HIDDEN, "")}
    return Setup(
        environment=environment,
        hidden=HIDDEN,
        arguments=("--settings", f"{FOLDER}/settings.json"),
        files={"settings.json": json.dumps(settings, indent=2) + "\n"},
    )


CLAUDE = Client(
    names=("claude", "claude-code"),
    title="Claude Code",
    dialect="Messages",
    executables=("claude",),
    install="Install it with `npm install -g @anthropic-ai/claude-code`.",
    setup=setup,
    switched_off=(
        "the billing line at the head of the system prompt (CLAUDE_CODE_ATTRIBUTION_HEADER): it changes from"
        " sub-agent to sub-agent and with each compaction, and with it everything behind it",
        "traffic that no reply needs: updates, telemetry, error reports, feedback",
    ),
    gives_up=(
        "the claude.ai login and what is done on Anthropic's servers, such as web search",
        "a `--settings` of your own: only one is read",
    ),
    num_own_tokens=12_000,
)
