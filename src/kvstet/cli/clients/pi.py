"""pi: Chat Completions, pointed by an extension that adds a provider for this run."""

from __future__ import annotations

import json

from kvstet.cli.clients.client import FOLDER, KEY_VARIABLE, Client, Setup, Target

EXTENSION = """\
// A provider for this run. The key is not written down.
export default function (pi) {
  pi.registerProvider("kvstet", {
    baseUrl: %(url)s,
    apiKey: process.env.%(variable)s,
    api: "openai-completions",
    models: [%(model)s],
  });
}
"""


def setup(target: Target) -> Setup:
    model = {
        "id": target.model,
        "name": target.model,
        "reasoning": True,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": target.context_length,
        "maxTokens": target.max_reply_tokens,
    }
    extension = EXTENSION % {
        "url": json.dumps(target.openai_url),
        "variable": KEY_VARIABLE,
        "model": json.dumps(model),
    }
    return Setup(
        environment={KEY_VARIABLE: target.api_key, "PI_SKIP_VERSION_CHECK": "1", "PI_TELEMETRY": "0"},
        # An extension rather than PI_CODING_AGENT_DIR: sessions, logins, skills and extensions live there too.
        arguments=("-e", f"{FOLDER}/kvstet.ts", "--provider", "kvstet", "--model", target.model),
        files={"kvstet.ts": extension},
    )


PI = Client(
    names=("pi",),
    title="pi",
    dialect="Chat",
    executables=("pi",),
    install="Install it with `npm install -g @earendil-works/pi-coding-agent`.",
    setup=setup,
    switched_off=("the version check and telemetry",),
    num_own_tokens=1_500,
)
