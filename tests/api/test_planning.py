"""What a request would cost is told in every dialect, without running it, and comes true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tests.api.harness import Site, running, tokens_of
from tests.api.played_engine import PlayedEngine
from tests.api.traces import reply_text, spelt, steps

from kvstet.chat.builtin import builtin_template
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.engine.fake_client import ScriptedEngine
from kvstet.llama.model import Model
from kvstet.types import Reuse

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]}
DIALECTS: dict[str, dict[str, Any]] = {
    "chat": CHAT,
    "messages": {"system": "Be brief.", "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 9},
    "responses": {"instructions": "Be brief.", "input": "Hello!"},
    "completions": {"prompt": "Hello!"},
    "ollama": {**CHAT, "options": {"temperature": 0}},
}


def plan(site: Site, body: Any, query: str = "") -> dict[str, Any]:
    response = site.post(f"/v1/kvstet/plan{query}", body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_dialect_is_known_by_its_fields(dialect: str, site: Site):
    told = plan(site, DIALECTS[dialect])
    assert told["dialect"] == dialect
    text = "Hello!" if dialect == "completions" else None
    expected = len(tokens_of(text)) if text else plan(site, CHAT)["plans"]["exact"]["prompt_tokens"]
    assert told["plans"]["exact"]["prompt_tokens"] == expected
    assert site.engine.requests == []


def test_anthropic_tools_tell_the_dialect_too(site: Site):
    tool = {"name": "read", "input_schema": {"type": "object"}}
    told = plan(site, {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "tools": [tool]})
    assert told["dialect"] == "messages"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_tokens_are_told_where_they_are_asked_for(dialect: str, site: Site):
    body = DIALECTS[dialect] | {"kvstet_reply": {"tokens": [72, 105]}}
    told = plan(site, body, "?tokens=true")
    assert len(told["tokens"]) == told["plans"]["exact"]["prompt_tokens"]
    assert b"Hello!" in bytes(token for token in told["tokens"] if token < 256)
    assert told["reply_tokens"] == [72, 105]
    assert plan(site, DIALECTS[dialect], "?tokens=true")["reply_tokens"] == []
    assert "tokens" not in plan(site, body)


def test_the_dialect_can_be_named(site: Site):
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    assert plan(site, body, "?dialect=messages")["dialect"] == "messages"
    response = site.post("/v1/kvstet/plan?dialect=klingon", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "dialect"


def test_all_parts_and_the_time_are_told_for_each_fidelity():
    engine = ScriptedEngine(appraisal=Reuse(10, 20, 0, 5, 30))
    with running(engine) as site:
        told = plan(site, CHAT)
    assert set(told["plans"]) == {"exact", "equivalent", "approximate"}
    assert told["fidelity"] == "exact"
    assert told["plans"]["exact"] == {
        "prompt_tokens": 35,
        "reused": 10,
        "loaded": 20,
        "shifted": 0,
        "computed": 5,
        "load_seconds": 0.25,
        "compute_seconds": 0.5,
        "seconds": 0.75,
        "substitutions": [],
    }


@pytest.mark.parametrize(
    ("headers", "expected"),
    [({}, ["exact", "equivalent", "approximate"]), ({"x-kvstet-edit": "redact"}, ["exact"] * 3)],
)
def test_a_request_that_takes_a_secret_out_is_planned_as_it_would_be_served(
    headers: dict[str, str], expected: list[str]
):
    engine = ScriptedEngine()
    with running(engine) as site, site.http() as http:
        assert http.post("/v1/kvstet/plan", json=CHAT, headers=headers).status_code == 200
    assert [question.fidelity for question in engine.questions] == expected


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages[0].role"),
        ({"prompt": ""}, "prompt"),
    ],
)
def test_what_could_not_be_run_is_refused_as_elsewhere(body: Any, param: str, site: Site):
    response = site.post("/v1/kvstet/plan", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_what_is_no_request_is_refused(site: Site):
    assert site.post("/v1/kvstet/plan", b"{").status_code == 400
    assert site.post("/v1/kvstet/plan", b"[]").status_code == 400


@pytest.fixture(scope="module")
def vocabulary(smollm2_path: Path):
    with Model.load_vocab(smollm2_path) as model:
        yield model


FIDELITIES = ["exact", "equivalent"]


@pytest.mark.parametrize("fidelity", FIDELITIES)
@pytest.mark.parametrize(
    "name", ["pi", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opencode-prune", "claude", "codex"))]
)
def test_recorded_sessions_cost_what_was_told_before(name: str, fidelity: str, vocabulary: Model):
    """And asking changes nothing: neither what is cached, nor what is remembered of the conversation."""
    vocab = vocabulary.vocab
    (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True).tolist()
    engine = PlayedEngine(context_length=1 << 18, vocab_size=vocab.num_tokens, end=end)
    renderer = Renderer(builtin_template("chatml-tools"), vocab, ledger=Ledger())
    random = np.random.default_rng(0)
    headers = {"content-type": "application/json", "x-kvstet-fidelity": fidelity}
    num_broken = 0
    with running(engine, renderer, vocab) as site, site.http(timeout=60) as http:
        for step in steps(name):
            if step.plan is None:
                continue
            dialect = "messages" if "messages" in step.path else "responses" if "responses" in step.path else "chat"
            answer = http.post(f"/v1/kvstet/plan?dialect={dialect}", content=step.body, headers=headers)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            body = {**msgspec.json.decode(step.body), "stream": False}
            engine.next_reply = (*spelt(reply_text(step.plan), vocab, random), end)
            came = http.post(step.path, content=json.dumps(body), headers=headers).json()["kvstet"]
            parts = ("reused", "loaded", "shifted", "computed")
            assert {part: told["plans"][fidelity][part] for part in parts} == {part: came[part] for part in parts}
            assert told["fidelity"] == fidelity
            assert [edit["kind"] for edit in told["edits"]] == [edit["kind"] for edit in came["edits"]]
            num_broken += bool(came["edits"])
    assert num_broken > 0
