"""Recorded sessions of real clients, replayed in their own dialects over HTTP; the model says what was said to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from tests.api.harness import running
from tests.api.played_engine import PlayedEngine
from tests.api.traces import FOLDER, Step, account_of, reply_text, spelt, steps
from tests.edits.labels import label_of, labels, served

from kvstet.chat.builtin import builtin_template
from kvstet.chat.deltas import ParsedReply
from kvstet.chat.ledger import Ledger, meaning_of, meanings_of_message
from kvstet.chat.messages import normalise
from kvstet.chat.renderer import Renderer
from kvstet.chat.tools import defaults_of
from kvstet.engine.messages import Generate
from kvstet.llama.model import Model
from kvstet.types import Prompt, Reuse

NAMES = sorted(path.name.partition(".")[0] for path in FOLDER.glob("*.jsonl.xz") if "requests" not in path.name)

CONTEXT = 1 << 18

NEVER_FOLLOWED = {"aider"}
"""It puts files and reminders behind each turn, and takes them away again."""

ALL_REASONING = builtin_template("chatml-tools").replace(" and loop.index0 > ns.last_user", "")
"""So that no reasoning is left out of older turns: then all that the model said can come back."""


class Watched(Renderer):
    """Knows which of the replies that it was told of come back in each prompt."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prompts: list[Prompt] = []
        self.num_own: list[int] = []
        """For each prompt: messages that mean what was said before."""
        self.said: list[tuple[Prompt, Sequence[int]]] = []
        self._meanings: set[bytes] = set()

    def render(self, messages: Sequence[Mapping[str, object]], **options: Any) -> Prompt:
        prompt = super().render(messages, **options)
        replies = [message for message in normalise(messages) if message["role"] == "assistant"]
        self.prompts.append(prompt)
        defaults = defaults_of(options.get("tools") or ())
        own = (self._meanings.intersection(meanings_of_message(message, defaults)) for message in replies)
        self.num_own.append(sum(map(bool, own)))
        return prompt

    def remember(self, prompt: Prompt, tokens: Sequence[int], reply: ParsedReply, *, has_ended: bool) -> None:
        super().remember(prompt, tokens, reply, has_ended=has_ended)
        self.said.append((prompt, tokens))
        self._meanings.add(meaning_of(reply))


class Session:
    """One trace, replayed."""

    def __init__(self, name: str, vocabulary: Model, *, echoes: bool) -> None:
        self.name = name
        vocab = vocabulary.vocab
        (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True).tolist()
        self.renderer = Watched(ALL_REASONING, vocab, ledger=Ledger() if echoes else None)
        self.engine = PlayedEngine(context_length=CONTEXT, vocab_size=vocab.num_tokens, end=end)
        self.answers: list[tuple[Step, httpx2.Response]] = []
        random = np.random.default_rng(0)
        with running(self.engine, self.renderer, vocab) as site, site.http() as http:
            for step in steps(name):
                if step.plan is None and "count_tokens" not in step.path:
                    continue  # The stub had refused it.
                text = reply_text(step.plan) if step.plan else ""
                self.engine.next_reply = (*spelt(text, vocab, random), end)
                answer = http.post(step.path, content=step.body, headers={"content-type": "application/json"})
                self.answers.append((step, answer))

    @property
    def reuses(self) -> list[Reuse]:
        return self.engine.reuses

    @property
    def num_computed(self) -> int:
        return sum(reuse.num_computed_tokens for reuse in self.reuses)


def num_followed_replies(requests: Sequence[Generate], reuses: Sequence[Reuse], renderer: Watched) -> int:
    """Requests that begin with an earlier prompt and its reply, of which nothing may be computed again."""
    num_followed = 0
    for request, reuse in zip(requests, reuses, strict=True):
        tokens = request.tokens.tolist()
        ends = [
            len(prompt.tokens) + len(said)
            for prompt, said in renderer.said
            if tokens[: len(prompt.tokens) + len(said)] == [*prompt.tokens.tolist(), *said]
        ]
        if ends:
            num_followed += 1
            assert reuse.num_known_tokens >= max(ends) - 1
            assert reuse.num_computed_tokens <= len(tokens) - max(ends) + 1
    return num_followed


@pytest.fixture(scope="module")
def vocabulary(smollm2_path: Path):
    with Model.load_vocab(smollm2_path) as model:
        yield model


QUICK = {"aider", "claude-err", "codex", "mini-swe-agent", "pi"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in NAMES]
)
def session(request: pytest.FixtureRequest, vocabulary: Model) -> Session:
    return Session(request.param, vocabulary, echoes=True)


def test_every_request_is_answered(session: Session):
    assert session.answers
    for step, answer in session.answers:
        assert answer.status_code == 200, (step.kind, answer.text)
        assert '"error":{' not in answer.text, step.kind
    assert session.engine.engine.is_idle


def test_replies_come_back_token_by_token(session: Session):
    """Whatever the client did to spelling, spacing and ids."""
    echoed = [prompt.num_echoed_messages for prompt in session.renderer.prompts]
    assert echoed == session.renderer.num_own


def test_what_follows_a_reply_computes_nothing_of_it_again(session: Session):
    """Wherever a prompt begins with an earlier one and its reply, both are known to the last token."""
    num_followed = num_followed_replies(session.engine.requests, session.reuses, session.renderer)
    assert (num_followed > 0) == (session.name not in NEVER_FOLLOWED)


def test_the_verdict_is_the_label_wherever_the_prefix_broke(session: Session):
    """And nothing is blamed for anything elsewhere."""
    if session.name in NEVER_FOLLOWED:
        return  # It moves its files about with each turn: nobody has labelled all that.
    expected = labels(session.name)
    for step, answer in session.answers:
        if "count_tokens" not in step.path:
            account = account_of(answer)
            assert [label_of(edit) for edit in account["edits"]] == served(expected.get(step.number)), step.number
            blamed = [edit for edit in account["edits"] if edit["num_tokens"]]
            assert ("Recomputed" in account["verdict"]) == any(edit["kind"] != "compaction" for edit in blamed)
            assert sum(edit["num_tokens"] for edit in blamed) <= account["computed"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pi", "opencode", "claude", "codex"])
def test_without_it_replies_are_computed_again(name: str, vocabulary: Model):
    with_echo, without = (Session(name, vocabulary, echoes=echoes) for echoes in (True, False))
    assert without.num_computed > 1.01 * with_echo.num_computed
