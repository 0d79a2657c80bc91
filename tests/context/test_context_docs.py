"""What ``docs/context.md`` says is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.context.conversations import assistant, tool, user

from kvstet.context.arranging.optimiser import ARRANGEMENTS
from kvstet.context.conversation import Context
from kvstet.context.outputs import DEFAULT_CHARACTERS
from kvstet.context.static import MAX_CONVERSATIONS
from kvstet.context.writing.compaction import FULL_SHARE
from kvstet.context.writing.payback import Rates

TEXT = (Path(__file__).parents[2] / "docs" / "context.md").read_text()


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_table_of_changes_is_current():
    rows = re.findall(r"^\| `([\w-]+)` \| (.*) \|$", TEXT[TEXT.index("## The optimiser") :], re.MULTILINE)
    assert dict(rows) == ARRANGEMENTS


def test_the_examples_run_one_after_the_other(capsys: pytest.CaptureFixture[str]):
    asked: list[dict[str, Any]] = []

    def model(**request: Any) -> dict[str, Any]:
        asked.append(request)
        return assistant("Done.")

    names: dict[str, Any] = {
        "tools": [tool("ls")],
        "model": model,
        "body": {"system": "You are.", "messages": [user("Hi")]},
    }
    assert len(snippets()) == 5
    for snippet in snippets():
        exec(compile(snippet, "docs/context.md", "exec"), names)
    told = asked[0]["messages"][1]["content"]
    assert f"```\n{told}\n```" in TEXT
    assert "breakpoints blocks marked: 2" in capsys.readouterr().out


def test_the_strategy_of_ones_own_does_what_it_says():
    names: dict[str, Any] = {"tools": [tool("ls")], "Context": Context}
    exec(compile(snippets()[3], "docs/context.md", "exec"), names)
    context: Context = names["context"]
    context.user("Look around.")
    for number in range(5):
        context.assistant(assistant("", "{}", id=f"{number}"))
        context.result(f"{number}", "ls", "a file\n" * 1_000)
    proposal = context.compaction(num_expected_requests=100)
    assert proposal is not None
    context.compact(proposal)
    outputs = [message["content"] for message in context.history.messages if message["role"] == "tool"]
    assert outputs[:4] == ["[A later listing follows.]"] * 4 and outputs[4].startswith("a file")


def test_the_numbers_of_the_example_are_those_of_a_run():
    context = Context("You are a careful engineer.", [tool("bash")])
    context.user("Fix the failing test.")
    for number in range(30):
        context.assistant(assistant("", "{}", id=f"c{number}"))
        context.result(f"c{number}", "bash", "x\n" * 9_000)
    proposal = context.compaction(Rates(read=0.1, write=1.25, output=5.0), num_expected_requests=20)
    assert proposal is not None and (proposal.start, proposal.stop) == (1, 55)
    assert f"about {round(context.num_tokens, -3):,} tokens" in TEXT
    assert f"{proposal.num_removed_tokens:,} tokens go" in " ".join(TEXT.split())
    assert f"{proposal.payback.cost_now:,.0f} fresh tokens" in TEXT
    assert f"saves {proposal.payback.saved_per_request:,.0f} with" in TEXT
    assert 2 < proposal.payback.num_requests_to_pay < 3


def test_limits_are_those_of_the_code():
    assert f"({DEFAULT_CHARACTERS:,})" in TEXT
    assert FULL_SHARE == 0.9 and "nine tenths of the room" in TEXT
    assert f"latest {MAX_CONVERSATIONS}" in TEXT
