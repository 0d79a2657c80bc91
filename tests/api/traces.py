"""Recorded sessions of real clients, and the replies that they got, as a model with a ChatML template writes them."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

from kvstet.types import Tokenizer

FOLDER = Path(__file__).parents[1] / "data" / "traces"


@dataclass(frozen=True)
class Step:
    """A request as it was sent, and what was said to it; None: it was refused, or nothing was recorded."""

    number: int
    path: str
    body: bytes
    plan: dict[str, Any] | None
    kind: str


def steps(name: str) -> Iterator[Step]:
    with lzma.open(FOLDER / f"{name}.jsonl.xz", "rt") as file:
        entries = [json.loads(line) for line in file]
    answers = {entry["seq"]: entry for entry in entries if entry["dir"] == "response"}
    for entry in entries:
        if entry["dir"] == "request":
            answer = answers.get(entry["seq"], {})
            yield Step(
                entry["seq"], entry["path"], entry["body_raw"].encode(), answer.get("plan"), answer.get("kind", "")
            )


def reply_text(plan: dict[str, Any]) -> str:
    """What the model writes: arguments as they were streamed to the client."""
    reasoning = f"<think>\n{plan['reasoning']}\n</think>\n\n" if plan.get("reasoning") else ""
    calls = [
        f'<tool_call>\n{{"name": "{_for_model(call["name"])}", "arguments": {call["args_raw"]}}}\n</tool_call>'
        for call in plan.get("calls") or ()
    ]
    return reasoning + "\n".join([*([plan["text"]] if plan.get("text") else []), *calls])


def _for_model(name: str) -> str:
    """A tool of a namespace has one name for the model."""
    return name.replace(".", "__")


def account_of(answer: httpx2.Response) -> dict[str, Any]:
    """The ``kvstet`` object of a response, streamed or not, in whichever dialect."""
    told = [line.removeprefix("data: ") for line in answer.text.splitlines() if '"kvstet":' in line]
    return _account_in(json.loads(told[-1]))


def _account_in(body: dict[str, Any]) -> dict[str, Any]:
    if "kvstet" in body:
        return body["kvstet"]
    return _account_in(next(value for value in body.values() if isinstance(value, dict) and "kvstet" in str(value)))


def spelt(text: str, tokenizer: Tokenizer, random: np.random.Generator) -> list[int]:
    """Tokens of the text as a model might choose them: not always the ones that the tokenizer would."""
    places = sorted(random.integers(0, len(text) + 1, max(1, len(text) // 20)).tolist())
    parts = [text[i:j] for i, j in zip([0, *places], [*places, len(text)], strict=True)]
    tokens = (tokenizer.tokenize(part, add_special=False, parse_special=False).tolist() for part in parts if part)
    return [token for part in tokens for token in part]
