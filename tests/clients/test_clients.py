"""Real clients, unmodified, started by `kvstet launch` against the running server; the model says what it is told to.

``make test-clients`` runs these; the clients come from their registries the first time. One at a time, they take
about a quarter of an hour.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.api.test_traces import num_followed_replies
from tests.clients.clients import CLIENTS, RealClient, client_named
from tests.clients.driving import Held, held
from tests.clients.script import MEAN_RIGHT, NOTE

import toys

pytestmark = [pytest.mark.slow, pytest.mark.clients, pytest.mark.timeout(900)]

CONTEXT = 131_072
NAMES = [client.name for client in CLIENTS]


@pytest.fixture(scope="module")
def model(smollm2_path: Path) -> Path:
    """A toy that decodes thousands of tokens a second, with a real tokenizer."""
    return toys.toy_path("llama-dense", context_length=CONTEXT, vocabulary=smollm2_path)


@pytest.fixture(scope="module", params=NAMES)
def client(request: pytest.FixtureRequest) -> RealClient:
    return client_named(request.param)


@pytest.fixture(scope="module")
def session(client: RealClient, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Held:
    """Four turns with tools."""
    return held(client, model, tmp_path_factory.mktemp(client.name))


@pytest.fixture(scope="module")
def overflowing(client: RealClient, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Held:
    """Five turns, of which the third is too much for the context."""
    return held(client, model, tmp_path_factory.mktemp(client.name), is_overflowing=True)


def test_a_client_comes_to_the_end_of_its_session(session: Held):
    script = session.site.script
    assert script.num_turns_done == len(script.turns), session.output[-3000:]
    assert set(session.statuses) == {0}, session.output[-3000:]
    # Each step was said, and none twice: the client never had to ask again.
    said = [step for step in script.chosen if "." in step]
    assert said == [f"{i + 1}.{j + 1}" for i, turn in enumerate(script.turns) for j in range(len(turn.steps))]


def test_its_tools_ran(session: Held):
    assert MEAN_RIGHT in session.file("inventory/stats.py")
    assert NOTE in session.file("NOTES.md")
    for output in session.client.seen:
        assert session.site.has_seen(output), output


def test_every_request_is_answered(session: Held):
    for one in session.site.answered:
        assert one.status == 200, (one.method, one.path, one.answer[-500:])
        assert b'"error":{' not in one.answer


def test_replies_come_back_token_by_token(session: Held):
    echoed = [prompt.num_echoed_messages for prompt in session.site.renderer.prompts]
    assert echoed == session.site.renderer.num_own
    # By the end, all that was said came back as it was, but for what the client itself changes.
    num_said = sum("." in step for step in session.site.script.chosen)
    assert echoed[-1] == num_said - 1 - session.client.num_changed


def test_what_follows_a_reply_computes_nothing_of_it_again(session: Held):
    """Wherever a prompt begins with an earlier one and its reply, both are known to the last token."""
    site = session.site
    requests = [request for _, request in site.engine.requests]
    num_followed = num_followed_replies(requests, site.engine.reuses, site.renderer)
    assert (num_followed > 0) == (session.client.name != "aider")


def test_launch_leaves_nothing_behind(session: Held):
    assert [path.name for path in session.temporary.glob("kvstet-launch-*")] == []


def test_a_client_knows_all_that_launch_tells_it(session: Held):
    assert "unrecognized configuration" not in session.output
    assert "unrecognized option" not in session.output.lower()


def test_a_client_recovers_when_the_context_is_full(overflowing: Held):
    """As its own logic has it: most sum the conversation up, and go on."""
    site, client = overflowing.site, overflowing.client
    refused = [one for one in site.answered if one.status != 200]
    assert bool(refused) == (client.believed_context is not None)
    for one in refused:
        assert one.status == 400
        assert b"context_length_exceeded" in one.answer or b"prompt is too long" in one.answer
    statuses = overflowing.statuses
    assert statuses == list(client.overflow_statuses[: len(statuses)]), overflowing.output[-3000:]
    assert ("summary" in site.script.chosen) == client.sums_up
    assert site.script.num_turns_done == client.num_overflow_turns
    echoed = [prompt.num_echoed_messages for prompt in site.renderer.prompts]
    assert echoed == site.renderer.num_own


@pytest.mark.parametrize("name", ["pi"])
def test_without_it_replies_are_computed_again(name: str, model: Path, tmp_path: Path):
    client = client_named(name)
    with_echo = held(client, model, tmp_path / "with")
    without = held(client, model, tmp_path / "without", echoes=False)
    assert without.site.num_computed_tokens > 1.01 * with_echo.site.num_computed_tokens


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pi", ["--optimise"]),
        ("claude", ["--optimise"]),
        ("codex", ["--optimise"]),
        ("pi", ["--dialect", "messages"]),
        ("claude", ["--dialect", "chat"]),
        ("codex", ["--dialect", "chat"]),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_client_works_through_the_gateway_in_its_own_dialect_and_in_others(
    name: str, options: list[str], model: Path, tmp_path: Path
):
    session = held(client_named(name), model, tmp_path, gateway=options)
    test_a_client_comes_to_the_end_of_its_session(session)
    test_its_tools_ran(session)
    paths = {one.path.partition("?")[0] for one in session.site.answered if one.method == "POST"}
    spoken = {"messages": "/v1/messages", "chat": "/v1/chat/completions"}.get(options[-1])
    assert spoken is None or spoken in paths
