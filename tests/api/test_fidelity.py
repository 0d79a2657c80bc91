"""How faithfully a request is read: who says so, what is done then, and that it is told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import Site, running
from tests.api.played_engine import PlayedEngine
from tests.context.conversations import assistant, head, result, tool, user

from kvstet.chat.builtin import builtin_template
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.config import ApiKey
from kvstet.context.equivalent.catalogue import SENTENCES
from kvstet.llama.model import Model

FIX, THANKS = user("Fix it."), user("Thanks.")
OUTPUT = "\n".join(f"line {number} of what the tool has found" for number in range(300))
NOTE = "[Old tool result content cleared]"
TOOLS = [tool(name) for name in ("ls", "read", "write")]
CALL = '{"path": "."}'
EQUIVALENT = {"x-kvstet-fidelity": "equivalent"}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def vocabulary(smollm2_path: Path) -> Iterator[Model]:
    with Model.load_vocab(smollm2_path) as model:
        yield model


class Playing:
    """A server whose model says what it is told to."""

    def __init__(self, site: Site, engine: PlayedEngine, vocabulary: Model) -> None:
        self.site = site
        self.engine = engine
        self._vocab = vocabulary.vocab

    def say(self, text: str) -> None:
        """In answer to the next requests."""
        text += "<|im_end|>"
        self.engine.next_reply = tuple(self._vocab.tokenize(text, add_special=False, parse_special=True).tolist())

    def ask(self, *messages: Any, tools: Sequence[Any] = (), **headers: str) -> dict[str, Any]:
        """The response's ``kvstet``."""
        body = {"messages": messages, **({"tools": tools} if tools else {})}
        with self.site.http(headers=headers) as http:
            answer = http.post(CHAT, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["kvstet"]

    @property
    def prompt(self) -> str:
        """The last one."""
        tokens = self.engine.requests[-1].tokens
        return b"".join(self._vocab.piece(token) for token in tokens.tolist()).decode()


def playing(vocabulary: Model, *, context_length: int = 1 << 16, **options: Any) -> Iterator[Playing]:
    vocab = vocabulary.vocab
    (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True).tolist()
    renderer = Renderer(builtin_template("chatml-tools"), vocab, ledger=Ledger(), masks=False)
    engine = PlayedEngine(context_length=context_length, vocab_size=vocab.num_tokens, end=end)
    with running(engine, renderer, vocab, **options) as site:
        player = Playing(site, engine, vocabulary)
        player.say("Done.")
        yield player


@pytest.fixture
def play(vocabulary: Model) -> Iterator[Playing]:
    yield from playing(vocabulary, fidelity="equivalent")


@pytest.fixture
def exact(vocabulary: Model) -> Iterator[Playing]:
    yield from playing(vocabulary)


def names(told: dict[str, Any]) -> list[str]:
    return [each["name"] for each in told["substitutions"]]


STEPS = [
    {"time": "10:00:07"},
    {"time": "10:31:00", "billing": "1"},
    {"git": " M a.py", "billing": "2"},
    {"git": " M a.py\n?? b.py", "billing": "3"},
    {"git": " M a.py\n?? b.py", "billing": "4", "date": "2026-11-22", "time": "00:00:10"},
]


def test_what_is_of_the_moment_costs_next_to_nothing(play: Playing, exact: Playing):
    history: list[Any] = [FIX]
    for moment in ({}, *STEPS):
        told, plain = (each.ask(head(**moment), *history) for each in (play, exact))
        if moment:
            assert told["computed"] < 100
            assert plain["computed"] > 150
            assert told["fidelity"] == "equivalent"
        history += [assistant("Done."), THANKS]


def test_tools_in_another_order_cost_one_token(play: Playing, exact: Playing):
    for each in (play, exact):
        each.ask(FIX, tools=TOOLS)
    assert play.ask(FIX, tools=TOOLS[::-1])["computed"] == 1
    assert exact.ask(FIX, tools=TOOLS[::-1])["computed"] > 100


def test_reasoning_that_the_template_leaves_out_stays(play: Playing, exact: Playing):
    for each, limit in ((play, 40), (exact, 1000)):
        each.say("<think>\nHm, let me see.\n</think>\n\nIt is long." + " So it is." * 300)
        each.ask(FIX)
        reply = "It is long." + " So it is." * 300
        for message in (assistant(reply, reasoning_content="Hm, let me see."), assistant(reply)):
            told = each.ask(FIX, message, THANKS)
            assert (told["computed"] < limit) == (each is play or message.get("reasoning_content") is None)
            assert ("Hm, let me see." in each.prompt) == (each is play)
            assert names(told) == ["reasoning"] * (each is play)
        each.say("Done.")


def test_outputs_that_were_pruned_stay(play: Playing):
    play.ask(FIX, assistant("", CALL), result(OUTPUT), tools=TOOLS)
    told = play.ask(FIX, assistant("", CALL), result(NOTE), assistant("Done."), THANKS, tools=TOOLS)
    assert told["computed"] < 30
    (substitution,) = told["substitutions"]
    assert (substitution["name"], substitution["message"]) == ("tool-output", 2)
    assert substitution["num_tokens"] > 1000
    assert OUTPUT[:20] not in json.dumps(told)


def test_what_was_dropped_is_kept_while_it_fits(vocabulary: Model):
    """With an eighth of the context free for the reply; and what was given up once does not come back."""
    for play in playing(vocabulary, context_length=8_000, fidelity="equivalent"):
        history = [FIX, assistant("", CALL), result(OUTPUT)]
        kept: list[bool] = []
        for number in range(6):
            told = play.ask(*history)
            assert told["reused"] + told["computed"] <= 7_000
            kept.append("tool-output" in names(told))
            history[2] = result(NOTE)
            history += [assistant("Done."), user(f"{number} " + "More of it. " * (400 if number < 3 else 1))]
        assert kept[0] is False
        assert kept[1:] == sorted(kept[1:], reverse=True)
        assert {*kept[1:]} == {True, False}
        assert names(play.ask(*history[:3], assistant("Done."), THANKS)) == []


def test_what_was_sent_stands_where_nothing_else_fits(play: Playing):
    play.ask(head(), FIX)
    num_tokens = len(play.engine.requests[-1].tokens)
    play.engine.info = replace(play.engine.info, context_length=num_tokens + 2)
    told = play.ask(head(date="2026-11-22"), FIX)
    assert (told["fidelity"], told["substitutions"]) == ("exact", [])


def test_exact_requests_are_untouched_whatever_went_before(play: Playing, exact: Playing):
    play.ask(head(), FIX, assistant("", CALL), result(OUTPUT), tools=TOOLS)
    later = (head(date="2026-11-22"), FIX, assistant("", CALL), result(NOTE))
    told = play.ask(*later, tools=TOOLS[::-1], **{"x-kvstet-fidelity": "exact"})
    exact.ask(*later, tools=TOOLS[::-1])
    assert (told["fidelity"], told["substitutions"]) == ("exact", [])
    assert play.engine.requests[-1].tokens.tolist() == exact.engine.requests[-1].tokens.tolist()


def test_the_request_has_the_last_word_then_the_key_then_the_server(vocabulary: Model):
    keys = (ApiKey("plain", "one"), ApiKey("careful", "two", fidelity="exact"))
    for play in playing(vocabulary, fidelity="equivalent", api_keys=keys):
        for secret, header, fidelity in [
            ("one", {}, "equivalent"),
            ("two", {}, "exact"),
            ("two", EQUIVALENT, "equivalent"),
            ("two", {"x-kvstet-fidelity": "Approximate"}, "equivalent"),
            ("one", {"x-kvstet-fidelity": "exact"}, "exact"),
        ]:
            key = {"x-api-key": secret}
            play.ask(head(), FIX, **key, **EQUIVALENT)
            assert play.ask(head(date="2026-11-22"), FIX, **key, **header)["fidelity"] == fidelity


def test_nothing_of_one_key_comes_to_another(vocabulary: Model):
    keys = (ApiKey("one", "1"), ApiKey("two", "2"))
    for play in playing(vocabulary, fidelity="equivalent", api_keys=keys):
        play.say("<think>\nThe password is xyzzy.\n</think>\n\nDone.")
        play.ask(FIX, **{"x-api-key": "1"})
        play.ask(FIX, assistant("", CALL), result(OUTPUT), **{"x-api-key": "1"})
        for messages in [(FIX, assistant("Done."), THANKS), (FIX, assistant("", CALL), result(NOTE))]:
            assert names(play.ask(*messages, **{"x-api-key": "1"})) != []
            assert names(play.ask(*messages, **{"x-api-key": "2"})) == []
            assert "xyzzy" not in play.prompt
            assert "line 7" not in play.prompt


def test_what_was_redacted_is_forgotten(play: Playing):
    play.say("<think>\nThe password is xyzzy.\n</think>\n\nDone.")
    play.ask(head(git="xyzzy.py"), FIX)
    first = (FIX, assistant("Done.", CALL), result(OUTPUT + "xyzzy"))
    play.ask(head(git="xyzzy.py"), *first)
    redacted = (head(), FIX, assistant("Done."), THANKS)
    reasoned = (head(git="xyzzy.py"), FIX, assistant("Done."), THANKS)
    play.ask(*reasoned)
    assert "The password" in play.prompt
    play.ask(*reasoned, **{"x-kvstet-edit": "redact"})
    play.ask(*reasoned)
    assert "The password" not in play.prompt
    for headers in ({"x-kvstet-edit": "redact"}, {}):
        assert names(play.ask(*redacted, **headers)) == []
        assert "xyzzy" not in play.prompt
    told = play.ask(head(), FIX, assistant("Done.", CALL), result(NOTE))
    assert (names(told), "xyzzy" in play.prompt) == ([], False)


def test_what_is_to_be_kept_as_it_is_can_be_named(play: Playing):
    play.ask(head(), FIX, tools=TOOLS)
    told = play.ask(head(date="2026-11-22"), FIX, tools=TOOLS[::-1], **{"x-kvstet-keep": "date, Tool-Order"})
    assert told["substitutions"] == []
    assert "2026-11-22" in play.prompt.partition("Fix it.")[0]


def test_what_the_server_never_substitutes_no_request_gets(vocabulary: Model):
    for play in playing(vocabulary, fidelity="equivalent", no_substitute=("tool-order",)):
        play.ask(FIX, tools=TOOLS)
        assert play.ask(FIX, tools=TOOLS[::-1])["substitutions"] == []


def test_what_can_be_substituted_is_listed_with_its_use(vocabulary: Model):
    for play in playing(vocabulary, no_substitute=("date",)):
        play.ask(FIX, tools=TOOLS, **EQUIVALENT)
        play.ask(FIX, tools=TOOLS[::-1], **EQUIVALENT)
        listed = play.site.get("/v1/kvstet/substitutions").json()
        assert listed["fidelity"] == "exact"
        by_name = {each["name"]: each for each in listed["data"]}
        assert list(by_name) == list(SENTENCES)
        assert [name for name, each in by_name.items() if not each["enabled"]] == ["date"]
        assert {name: each["requests"] for name, each in by_name.items() if each["requests"]} == {"tool-order": 1}
        assert 'kvstet_substitutions_total{name="tool-order"} 1.0' in play.site.get("/metrics").text


BODIES = {
    CHAT: {"messages": [FIX]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"messages": [FIX], "max_tokens": 5},
    "/v1/responses": {"input": "Hi"},
    "/api/chat": {"messages": [FIX], "stream": False},
    "/api/generate": {"prompt": "Hi", "stream": False},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "header",
    [{"x-kvstet-fidelity": "roughly"}, {"x-kvstet-keep": "date, weather"}, {"x-kvstet-edit": "scramble"}],
    ids=["fidelity", "keep", "edit"],
)
def test_unknown_words_are_refused_in_the_clients_dialect(play: Playing, path: str, header: dict[str, str]):
    with play.site.http(headers=header) as http:
        answer = http.post(path, json=BODIES[path])
        assert answer.status_code == 400
        (name,) = header
        error = answer.json()["error"]
        message = error if isinstance(error, str) else error["message"]
        assert "substitution named 'weather'" in message if name == "x-kvstet-keep" else name in message


@pytest.mark.parametrize("path", BODIES)
def test_every_dialect_takes_all_three(play: Playing, path: str):
    for fidelity in ("exact", "equivalent", "approximate"):
        with play.site.http(headers={"x-kvstet-fidelity": fidelity}) as http:
            assert http.post(path, json=BODIES[path]).status_code == 200


def test_a_template_that_refuses_the_equivalent_gets_what_was_sent(vocabulary: Model):
    vocab = vocabulary.vocab
    (end,) = vocab.tokenize("<|im_end|>", add_special=False, parse_special=True).tolist()
    refusing = builtin_template("chatml-tools").replace(
        "{%- set has_system",
        "{%- if '[Update]' in messages[-1].content %}{{ raise_exception('no') }}{% endif %}{%- set has_system",
    )
    engine = PlayedEngine(context_length=1 << 14, vocab_size=vocab.num_tokens, end=end)
    with running(engine, Renderer(refusing, vocab, ledger=Ledger()), vocab, fidelity="equivalent") as site:
        player = Playing(site, engine, vocabulary)
        player.say("Done.")
        player.ask(head(), FIX)
        assert player.ask(head(date="2026-11-22"), FIX)["fidelity"] == "exact"
