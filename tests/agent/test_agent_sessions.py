"""Sessions: saved message by message, resumed, forked, private."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstet.agent.confirmation import Yes
from kvstet.agent.instructions import SYSTEM
from kvstet.agent.loop import INTERRUPTED, Agent
from kvstet.agent.model import ScriptedModel, saying
from kvstet.agent.sessions import Session, SessionStore
from kvstet.agent.toolbox import Toolbox, workspace_tools
from kvstet.agent.tools.workspace import Workspace
from kvstet.context.conversation import Context
from kvstet.context.message import role_of
from kvstet.context.writing.compaction import Compaction, View
from kvstet.context.writing.payback import Payback
from kvstet.dialects.reply import Delta
from kvstet.dialects.request import Request
from kvstet.errors import ModelFailed, SessionError

Said = tuple[str, object]
"""What the user says, and something that comes with the reply."""


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "agent" / "sessions.sqlite")


@pytest.fixture
def toolbox(tmp_path: Path) -> Toolbox:
    folder = tmp_path / "work"
    folder.mkdir()
    return Toolbox(workspace_tools(Workspace(folder), {}), Yes())


def new_session(store: SessionStore) -> Session:
    return store.create(workspace=Path("/work"), model="m")


def listing(number: int) -> list[Delta]:
    return saying("", (f"call-{number}", "list", "{}"))


async def test_a_session_is_resumed_byte_for_byte(store: SessionStore, toolbox: Toolbox) -> None:
    session = new_session(store)
    context = Context(SYSTEM, toolbox.schemas, takes_late_tools=True)
    model = ScriptedModel([listing(1), saying("Done. é \u2028")])
    await Agent(model, context, toolbox, journal=session).run("Look around.")
    _, resumed, step = store.resumed(session.id)
    assert resumed.to_json() == context.to_json()
    assert json.dumps(resumed.request()) == json.dumps(context.request())
    assert step == 2


async def test_a_resumed_session_goes_on_with_the_same_prefix(store: SessionStore, toolbox: Toolbox) -> None:
    session = new_session(store)
    first = ScriptedModel([listing(1), saying("Done.")])
    context = Context(SYSTEM, toolbox.schemas, takes_late_tools=True)
    await Agent(first, context, toolbox, journal=session).run("One.")
    again, context, step = SessionStore(store._path).resumed(session.id)
    second = ScriptedModel([saying("More.")])
    await Agent(second, context, toolbox, journal=again, step=step).run("Two.")
    before, after = first.requests[-1], second.requests[0]
    assert json.dumps(after.messages[: len(before.messages)]) == json.dumps(before.messages)
    assert json.dumps(after.tools) == json.dumps(before.tools)


async def test_a_step_that_only_began_is_taken_again_when_it_is_resumed(store: SessionStore, toolbox: Toolbox) -> None:
    session = new_session(store)
    context = Context(SYSTEM, toolbox.schemas)
    agent = Agent(ScriptedModel([saying("Done.")]), context, toolbox, journal=session)
    await agent.run("One.")
    with pytest.raises(ModelFailed):
        await agent.run("Two.")
    _, resumed, step = store.resumed(session.id)
    assert step == 1
    assert resumed.history.messages[-1]["content"] == "Two."


async def test_each_message_is_saved_as_it_happens(store: SessionStore, toolbox: Toolbox) -> None:
    session = new_session(store)
    seen: list[int] = []

    def reply(_: Request) -> list[Delta]:
        seen.append(len(store.resumed(session.id)[1].history))
        return [listing(1), listing(2), saying("Done.")][len(seen) - 1]

    context = Context(SYSTEM, toolbox.schemas)
    await Agent(ScriptedModel([reply] * 3), context, toolbox, journal=session).run("Go")
    assert seen == [1, 3, 5]
    assert len(store.resumed(session.id)[1].history) == 6


def test_a_killed_agent_resumes_and_answers_what_was_left(store: SessionStore, tmp_path: Path) -> None:
    """A process that is killed in a tool, for real."""
    script = f"""
import asyncio, json, os
from pathlib import Path
from kvstet.agent.confirmation import Yes
from kvstet.agent.loop import Agent
from kvstet.agent.model import ScriptedModel, saying
from kvstet.agent.sessions import SessionStore
from kvstet.agent.toolbox import Toolbox, workspace_tools
from kvstet.agent.tools.workspace import Workspace
from kvstet.context.conversation import Context
folder = Path({str(tmp_path)!r})
box = Toolbox(workspace_tools(Workspace(folder), dict(os.environ)), Yes())
session = SessionStore(folder / "agent" / "sessions.sqlite").create(workspace=folder, model="m")
commands = [("a", "echo one"), ("b", "kill -9 $PPID"), ("c", "echo three")]
calls = [(id, "bash", json.dumps({{"command": command}})) for id, command in commands]
asyncio.run(Agent(ScriptedModel([saying("Three.", *calls)]), Context("", box.schemas), box, journal=session).run("Go"))
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, timeout=60)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    (info,) = store.sessions()
    _, context, step = store.resumed(info.id)
    assert [message["role"] for message in context.history.messages] == ["user", "assistant", "tool"]
    toolbox = Toolbox([], Yes())
    model = ScriptedModel([saying("Fine.")])
    asyncio.run(Agent(model, context, toolbox, step=step).run("Go on."))
    contents = [str(message["content"]) for message in model.requests[0].messages]
    assert contents[2] == "one"
    # What changed around it is told with the first message that follows.
    assert [content.endswith(INTERRUPTED) for content in contents[3:5]] == [True, True]
    assert contents[5].endswith("Go on.")


async def test_a_fork_goes_on_from_a_step_and_leaves_the_first_as_it_was(store: SessionStore, toolbox: Toolbox) -> None:
    session = new_session(store)
    context = Context(SYSTEM, toolbox.schemas)
    model = ScriptedModel([listing(1), listing(2), saying("Done.")])
    await Agent(model, context, toolbox, journal=session).run("Go")
    fork, forked, step = store.forked(session.id[:12], 1, model="other")
    assert step == 1
    assert [message["role"] for message in forked.history.messages] == ["user", "assistant", "tool"]
    assert forked.history.num_common(context.history) == 3
    await Agent(ScriptedModel([saying("Elsewhere.")]), forked, toolbox, journal=fork, step=step).run("Otherwise.")
    assert store.resumed(session.id)[1].to_json() == context.to_json()
    assert store.resumed(fork.id)[1].history.messages[-1]["content"] == "Elsewhere."
    assert {info.id: info.parent for info in store.sessions()} == {session.id: None, fork.id: f"{session.id}@1"}


def once_full(view: View) -> Compaction | None:
    """Summarises the first reply as soon as the user has said more."""
    if [role_of(message) for message in view.messages[1:]] != ["assistant", "user"]:
        return None
    paid = Payback(cost_now=0, saved_per_request=1, num_expected_requests=1)
    return Compaction(kind="summary", start=1, stop=2, num_removed_tokens=1, payback=paid, is_needed=True)


async def test_a_fork_at_a_step_has_nothing_of_what_came_after_it(store: SessionStore, toolbox: Toolbox) -> None:
    """Neither what the user said then, nor the summary that was written before it was answered."""
    session = new_session(store)
    context = Context(SYSTEM, toolbox.schemas, strategies=[once_full])
    agent = Agent(ScriptedModel([saying("One."), saying("Summary.")]), context, toolbox, journal=session)
    await agent.run("First.")
    with pytest.raises(ModelFailed):
        await agent.run("Second.")
    _, resumed, step = store.resumed(session.id)
    assert (step, len(resumed.history)) == (1, 3)
    assert "Summary." in resumed.history.messages[1]["content"]
    _, forked, step = store.forked(session.id, 1, model="m")
    assert (step, [message["content"] for message in forked.history.messages]) == (1, ["First.", "One."])
    with pytest.raises(SessionError, match="nothing to go on from at step 0"):
        store.forked(session.id, 0, model="m")


def test_what_is_no_text_does_not_keep_a_session_from_being_saved(store: SessionStore) -> None:
    session = store.create(workspace=Path("/caf\udce9"), model="m")
    context = Context("")
    context.user("caf\udce9")
    session.save(context, 0)
    (info,) = store.sessions()
    assert (info.title, info.workspace) == ("caf?", "/caf?")
    assert store.resumed(session.id)[1].to_json() == context.to_json()


async def test_messages_that_sessions_share_are_kept_once(store: SessionStore, toolbox: Toolbox) -> None:
    session = new_session(store)
    context = Context(SYSTEM, toolbox.schemas)
    await Agent(ScriptedModel([listing(1), saying("Done.")]), context, toolbox, journal=session).run("Go")
    for _ in range(5):
        store.forked(session.id, None, model="m")
    with sqlite3.connect(store._path) as database:
        assert database.execute("SELECT count(*) FROM entries").fetchone() == (4,)
    database.close()


async def test_what_a_compaction_took_away_can_be_gone_back_to(store: SessionStore, toolbox: Toolbox) -> None:
    session = new_session(store)
    context = Context(SYSTEM, toolbox.schemas)
    await Agent(ScriptedModel([listing(1), saying("x" * 40_000)]), context, toolbox, journal=session).run("Go")
    before = context.to_json()
    paid = Payback(cost_now=0, saved_per_request=1, num_expected_requests=1)
    compaction = Compaction(kind="summary", start=1, stop=3, num_removed_tokens=1, payback=paid, is_needed=True)
    context.compact(compaction, "What was done.")
    session.save(context, 3)
    assert store.resumed(session.id)[1].to_json() == context.to_json()
    assert store.forked(session.id, 2, model="m")[1].to_json() == before


def test_sessions_are_found_by_the_beginning_of_their_id(store: SessionStore) -> None:
    with pytest.raises(SessionError, match="There is no session yet"):
        store.named(None)
    first, second = new_session(store), new_session(store)
    assert store.named(None).id in (first.id, second.id)
    assert store.named(first.id).id == first.id
    with pytest.raises(SessionError, match="2 sessions begin"):
        store.named(first.id[:3])
    with pytest.raises(SessionError, match="No sessions begin"):
        store.named("1999")
    with pytest.raises(SessionError, match="nothing to go on from"):
        store.resumed(first.id)


async def test_a_session_is_called_by_what_the_user_said_first(store: SessionStore, toolbox: Toolbox) -> None:
    async def clock() -> dict[str, str]:
        return {"date": "today"}

    session = new_session(store)
    model = ScriptedModel([saying("Yes."), saying("Yes.")])
    agent = Agent(model, Context(SYSTEM, toolbox.schemas), toolbox, journal=session, surroundings=clock)
    await agent.run("Mend the\nroof. " + "x" * 200)
    await agent.run("And the door.")
    (info,) = store.sessions()
    assert info.title.startswith("Mend the roof. xxx")
    assert (len(info.title), info.num_steps) == (80, 2)


def test_nobody_else_can_read_sessions(store: SessionStore) -> None:
    session = new_session(store)
    session.save(Context("secret"), 0)
    folder = store._path.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_a_file_that_was_open_to_others_is_closed_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o755)
    (folder / "sessions.sqlite").touch(mode=0o644)
    SessionStore(folder / "sessions.sqlite")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "sessions.sqlite").stat().st_mode) == 0o600


def test_a_damaged_session_is_told_and_not_resumed(store: SessionStore) -> None:
    session = new_session(store)
    context = Context("")
    context.user("one")
    context.user("two")
    session.save(context, 0)
    with sqlite3.connect(store._path) as database:
        database.execute("UPDATE entries SET text = replace(text, 'one', 'eno')")
    database.close()
    with pytest.raises(SessionError, match="damaged"):
        store.resumed(session.id)


@pytest.mark.parametrize("lost", ["before = ''", "before != ''", "true"])
def test_a_session_that_lost_messages_is_not_resumed(store: SessionStore, lost: str) -> None:
    session = new_session(store)
    context = Context("")
    context.user("one")
    context.user("two")
    session.save(context, 0)
    with sqlite3.connect(store._path) as database:
        database.execute(f"DELETE FROM entries WHERE {lost}")
    database.close()
    with pytest.raises(SessionError, match="damaged"):
        store.resumed(session.id)


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 100, b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent" / "sessions.sqlite"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(SessionError, match="cannot be used"):
        SessionStore(path)


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "sessions.sqlite").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SessionError, match="cannot be used"):
        SessionStore(tmp_path / "agent" / "sessions.sqlite")
    assert not (tmp_path / "elsewhere").exists()


def test_several_agents_save_at_once(store: SessionStore) -> None:
    def work() -> None:
        session = new_session(SessionStore(store._path))
        context = Context("")
        for number in range(20):
            context.user(f"{session.id} {number}")
            session.save(context, number)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.sessions()) == 6
    for info in store.sessions():
        assert len(store.resumed(info.id)[1].history) == 20


texts = st.text(max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=15)
@given(st.lists(st.tuples(texts, values), max_size=6))
def test_whatever_was_said_survives_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, said: list[Said]) -> None:
    store = SessionStore(tmp_path_factory.mktemp("s") / "sessions.sqlite")
    session = new_session(store)
    context = Context("system \ud800", [], takes_late_tools=True)
    for text, value in said:
        context.note("n", text)
        context.user(text)
        context.assistant({"role": "assistant", "content": text, "more": value})
        session.save(context, 1)
    session.save(context, 1)
    resumed = store.resumed(session.id)[1]
    assert resumed.to_json() == context.to_json()
    assert [entry.text for entry in resumed.history] == [entry.text for entry in context.history]


def test_the_store_is_in_a_folder_of_its_own(tmp_path: Path) -> None:
    """Its folder is made private, so it must never be one that others use."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    os.chmod(shared, 0o755)
    SessionStore(shared / "agent" / "sessions.sqlite")
    assert stat.S_IMODE(shared.stat().st_mode) == 0o755
