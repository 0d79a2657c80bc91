"""Tools of a real MCP server: the official SDK on both sides, the server as a process."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from kvstet.agent import tool_servers
from kvstet.agent.confirmation import Confirmation, Scripted, Yes
from kvstet.agent.instructions import SYSTEM
from kvstet.agent.loop import Agent
from kvstet.agent.model import ScriptedModel, saying
from kvstet.agent.tool_servers import ServerCommand, ToolServers, server_command, tool_name
from kvstet.agent.toolbox import DECLINED, Toolbox, workspace_tools
from kvstet.agent.tools.tool import name_of
from kvstet.agent.tools.workspace import Workspace
from kvstet.context.conversation import Context
from kvstet.errors import ServerFailed

SERVER = f"{shlex.quote(sys.executable)} {shlex.quote(str(Path(__file__).parent / 'mcp_server.py'))}"


@asynccontextmanager
async def toolbox(
    folder: Path, confirmation: Confirmation | None = None, commands: Iterable[ServerCommand] = ()
) -> AsyncGenerator[Toolbox, None]:
    async with ToolServers(list(commands) or [server_command(f"test={SERVER}")], folder) as servers:
        box = Toolbox(workspace_tools(Workspace(folder), {}), confirmation or Yes(), source=servers)
        await box.refresh()
        yield box


def names(box: Toolbox) -> set[str]:
    return {name_of(schema) for schema in box.schemas}


async def call(box: Toolbox, name: str, **arguments: object) -> str:
    return await box.call(name, json.dumps(arguments))


async def test_a_servers_tools_are_called_under_its_name(tmp_path: Path) -> None:
    async with toolbox(tmp_path) as box:
        assert await call(box, "mcp__test__add", a=2, b=3) == "5"
        schema = next(schema for schema in box.schemas if name_of(schema) == "mcp__test__add")
        assert schema["function"]["description"] == "Add two numbers."
        assert schema["function"]["parameters"]["required"] == ["a", "b"]


async def test_names_that_a_server_makes_up_cannot_do_harm(tmp_path: Path) -> None:
    async with toolbox(tmp_path) as box:
        assert all(name.replace("_", "").replace("-", "").isalnum() and len(name) <= 64 for name in names(box))
        assert names(box) >= {"bash", "mcp__test__bash"}
        (evil,) = [name for name in names(box) if "evil" in name]
        assert await call(box, evil) == "evil"
        # The agent's own is the agent's own.
        assert await call(box, "bash", command="echo really run") == "really run"
        assert await call(box, "mcp__test__bash", command="x") == "not run: x"
    assert not list(tmp_path.iterdir())


def test_two_names_are_never_spelt_alike() -> None:
    raw = ["a.b", "a b", "a_b", "a\nb", "x" * 100, "x" * 101, "é", "ü", "", "_", "\ud800"]
    spelt = {tool_name("s", name) for name in raw}
    assert len(spelt) == len(raw)
    assert all(len(name) <= 64 for name in spelt)


async def test_each_call_is_confirmed(tmp_path: Path) -> None:
    asking = Scripted([False, True])
    async with toolbox(tmp_path, asking) as box:
        assert await call(box, "mcp__test__add", a=1, b=1) == DECLINED
        assert await call(box, "mcp__test__add", a=1, b=1) == "2"
    assert asking.asked[0].title == "call mcp__test__add"
    assert '"a": 1' in asking.asked[0].detail


async def test_errors_pictures_and_nonsense_are_told_in_words(tmp_path: Path) -> None:
    async with toolbox(tmp_path) as box:
        assert "it went wrong" in await call(box, "mcp__test__fail")
        assert (await call(box, "mcp__test__fail")).startswith("Error: ")
        assert await call(box, "mcp__test__picture") == "(image of type image/png)"
        assert (await call(box, "mcp__test__add", a="many")).startswith("Error: ")
        assert "not JSON" in await box.call("mcp__test__add", "{")
        assert "JSON object" in await box.call("mcp__test__add", "[]")
        assert len(await call(box, "mcp__test__huge")) == 1_000_000


async def test_a_server_sees_no_key_but_the_ones_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "planted")
    commands = [server_command(f"test={SERVER}", {"GITHUB_TOKEN": "given"})]
    async with toolbox(tmp_path, commands=commands) as box:
        seen = await call(box, "mcp__test__environment")
    assert "given" in seen
    assert "planted" not in seen
    assert "given" not in repr(commands)


async def test_a_tool_that_comes_and_goes_in_a_session_is_announced(tmp_path: Path) -> None:
    through = json.dumps({"name": "mcp__test__speak", "arguments": {"text": "hi"}})
    async with toolbox(tmp_path) as box:
        context = Context(SYSTEM, box.schemas, takes_late_tools=True)
        model = ScriptedModel(
            [
                saying("", ("a", "mcp__test__learn", '{"name": "speak"}')),
                saying("", ("b", "use_tool", through)),
                saying("", ("c", "mcp__test__forget", '{"name": "speak"}')),
                saying("", ("d", "use_tool", through)),
                saying("Done."),
            ]
        )
        await Agent(model, context, box).run("Go")
    results = [str(message["content"]) for message in context.history.messages if message["role"] == "tool"]
    assert "mcp__test__speak" in results[0]
    assert results[1] == "speak says hi"
    assert "mcp__test__speak can no longer be called" in results[2]
    assert results[3].startswith("Error: There is no tool 'mcp__test__speak'")
    assert all(request.tools == model.requests[0].tools for request in model.requests)


@pytest.mark.timeout(30)
async def test_a_server_that_ends_takes_its_tools_with_it(tmp_path: Path) -> None:
    async with toolbox(tmp_path) as box:
        assert (await call(box, "mcp__test__end")).startswith("Error: The tool server")
        assert (await call(box, "mcp__test__add", a=1, b=1)).startswith("Error: The tool server")
        await box.refresh()
        assert names(box) == {"read", "list", "search", "edit", "write", "bash"}


@pytest.mark.timeout(60)
async def test_a_server_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_servers, "START_SECONDS", 6.0)
    monkeypatch.setattr(tool_servers, "CALL_SECONDS", 0.2)
    async with toolbox(tmp_path) as box:
        assert (await call(box, "mcp__test__hang")).startswith("Error: The tool server failed")
        await box.refresh()
        assert names(box) == {"read", "list", "search", "edit", "write", "bash"}
        begun = time.monotonic()
        await box.refresh()
        assert time.monotonic() - begun < 1


async def test_servers_are_ended_with_the_session(tmp_path: Path) -> None:
    async with toolbox(tmp_path):
        (child,) = [one for one in psutil.Process().children() if "mcp_server.py" in " ".join(one.cmdline())]
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("test=no-such-program", "The tool server test does not start"),
        (f"test={SERVER} --broken", "planted reason"),
        (f"test={shlex.quote(sys.executable)} -c pass", "The tool server test does not start"),
    ],
)
async def test_a_server_that_does_not_start_is_named_with_its_reason(tmp_path: Path, command: str, told: str) -> None:
    with pytest.raises(ServerFailed, match=told):
        async with toolbox(tmp_path, commands=[server_command(command)]):
            pytest.fail("It has not started.")


@pytest.mark.parametrize("text", ["", "test", "=x", "test=", "te st=x", "test='", "a/b=x", "a\nb=x", "x" * 21 + "=x"])
def test_what_names_no_server_is_refused(text: str) -> None:
    with pytest.raises(ServerFailed):
        server_command(text)


def test_a_command_is_words_and_no_shell_reads_it() -> None:
    assert server_command("a=b 'c d' $(e) ; f").words == ("b", "c d", "$(e)", ";", "f")
    with pytest.raises(ServerFailed, match="same name"):
        ToolServers([server_command("a=b"), server_command("a=c")], Path())
