"""The tools, each through the toolbox as the model calls it."""

from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from kvstet.agent.confirmation import No, Scripted, Yes
from kvstet.agent.toolbox import DECLINED, Toolbox, reading, workspace_tools
from kvstet.agent.tools.ignore import Glob
from kvstet.agent.tools.searching import Search
from kvstet.agent.tools.workspace import Workspace


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "stats.py").write_text("def mean(xs):\n    return sum(xs) / len(xs)\n")
    (folder / "README.md").write_text("# Stats\n")
    (tmp_path / "secret.txt").write_text("secret")
    return folder


@pytest.fixture
def toolbox(folder: Path) -> Toolbox:
    return Toolbox(workspace_tools(Workspace(folder), dict(os.environ)), Yes())


async def call(toolbox: Toolbox, name: str, **arguments: object) -> str:
    return await toolbox.call(name, json.dumps(arguments))


async def test_a_file_is_read_with_line_numbers(toolbox: Toolbox) -> None:
    text = await call(toolbox, "read", path="src/stats.py")
    assert text == "1\tdef mean(xs):\n2\t    return sum(xs) / len(xs)"


async def test_a_range_of_lines_says_how_to_go_on(toolbox: Toolbox, folder: Path) -> None:
    (folder / "long.txt").write_text("".join(f"line {number}\n" for number in range(1, 101)))
    text = await call(toolbox, "read", path="long.txt", start_line=10, num_lines=2)
    assert text == "10\tline 10\n11\tline 11\n(89 more lines; go on with start_line=12.)"
    assert await call(toolbox, "read", path="long.txt", start_line=101) == "Error: 'long.txt' has 100 lines only."


async def test_lines_that_are_too_long_are_cut(toolbox: Toolbox, folder: Path) -> None:
    (folder / "min.js").write_text("x" * 1_000_000)
    text = await call(toolbox, "read", path="min.js")
    assert len(text) < 3000
    assert "998,000 characters more" in text


async def test_a_binary_file_is_named_as_one(toolbox: Toolbox, folder: Path) -> None:
    (folder / "image").write_bytes(b"\x89PNG\0\0")
    assert await call(toolbox, "read", path="image") == "Error: 'image' is a binary file of 6 bytes."
    assert "binary" in await call(toolbox, "edit", path="image", old="PNG", new="GIF")


async def test_an_empty_file_is_empty(toolbox: Toolbox, folder: Path) -> None:
    (folder / "empty").touch()
    assert await call(toolbox, "read", path="empty") == "(The file is empty.)"


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("read", "{", "not what the tool takes"),
        ("read", "", "missing required field `path`"),
        ("read", '{"path": 3}', "Expected `str`"),
        ("read", '{"path": "README.md", "start_line": 0}', "`int` >= 1"),
        ("read", '{"path": "README.md", "more": 1}', "unknown field"),
        ("read", "[" * 100_000, "not what the tool takes"),
        ("read", '{"path": "nowhere"}', "no such file"),
        ("list", '{"path": "README.md"}', "not a directory"),
        ("fly", "{}", "There is no tool 'fly'; there are bash, edit, list, read, search, write."),
        ("bash\n", "{}", "There is no tool"),
    ],
)
async def test_a_call_that_makes_no_sense_is_answered_in_words(
    toolbox: Toolbox, name: str, arguments: str, told: str
) -> None:
    answer = await toolbox.call(name, arguments)
    assert answer.startswith("Error: ")
    assert told in answer


async def test_numbers_in_quotes_are_numbers(toolbox: Toolbox) -> None:
    assert await call(toolbox, "read", path="src/stats.py", num_lines="1") == (
        "1\tdef mean(xs):\n(1 more lines; go on with start_line=2.)"
    )


async def test_a_listing_leaves_out_what_git_ignores(toolbox: Toolbox, folder: Path) -> None:
    (folder / ".gitignore").write_text("# built\n*.pyc\n/build/\n!keep.pyc\nlogs/**/old\n")
    for path in ("src/a.pyc", "src/keep.pyc", "build/x", "src/build/y", "logs/a/b/old", "logs/a/new", ".git/config"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()
    (folder / "link").symlink_to("/etc")
    lines = (await call(toolbox, "list", depth=9)).split("\n")
    assert lines == [
        ".gitignore",
        "README.md",
        "link@",
        "logs/",
        "logs/a/",
        "logs/a/b/",
        "logs/a/new",
        "src/",
        "src/build/",
        "src/build/y",
        "src/keep.pyc",
        "src/stats.py",
    ]


async def test_a_listing_below_a_folder_knows_the_rules_above_it(toolbox: Toolbox, folder: Path) -> None:
    (folder / ".gitignore").write_text("src/made/\n")
    (folder / "src" / "made").mkdir()
    (folder / "src" / "made" / "x").touch()
    assert await call(toolbox, "list", path="src") == "src/stats.py"


async def test_a_listing_has_an_end(toolbox: Toolbox, folder: Path) -> None:
    (folder / "many").mkdir()
    for number in range(700):
        (folder / "many" / f"{number:04}").touch()
    lines = (await call(toolbox, "list", path="many")).split("\n")
    assert len(lines) == 501
    assert "There is more" in lines[-1]


async def test_a_name_that_is_no_text_is_told_as_far_as_it_is(toolbox: Toolbox, folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))).write_text("latte")
    for name, arguments in (("list", "{}"), ("search", '{"pattern": "latte"}'), ("read", '{"path": "caf\\u00e9.txt"}')):
        answer = await toolbox.call(name, arguments)
        assert "caf" in answer
        answer.encode()


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", ["*a*a*a*a*a*a*a*b", "**/*a*a*a*a*a*b", "**/a/**/a/**/a/**/b"])
async def test_no_pattern_and_no_name_takes_long(toolbox: Toolbox, folder: Path, pattern: str) -> None:
    """A listing runs in this process, where nothing can end a search that goes back and forth for ever."""
    (folder / ("a" * 250)).touch()
    (folder / "/".join("a" * 30)).mkdir(parents=True)
    (folder / ".gitignore").write_text(f"{pattern}\n")
    begun = time.monotonic()
    assert await call(toolbox, "list", pattern=pattern) == "(Nothing is there.)"
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.py", "src/a.py", True),
        ("/*.py", "src/a.py", False),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/b/a.py", False),
        ("src/**/*.py", "src/a.py", True),
        ("src/**/*.py", "src/b/c/a.py", True),
        ("**/b/*", "b/a", True),
        ("b/**", "b/c/a", True),
        ("b/**", "b", False),
        ("**", "b/c", True),
        ("a**c", "abc", True),
        ("a**c", "a/c", False),
        ("[ab].py", "b.py", True),
        ("[!ab].py", "b.py", False),
        ("[z-a", "[z-a", True),
        ("a?c", "a/c", False),
        ("a.c", "abc", False),
    ],
)
def test_patterns_are_read_as_git_reads_them(pattern: str, path: str, fits: bool) -> None:
    assert Glob.of(pattern).fits(path) == fits


async def test_a_listing_by_pattern_names_files_only(toolbox: Toolbox) -> None:
    assert await call(toolbox, "list", pattern="*.py") == "src/stats.py"
    assert await call(toolbox, "list", pattern="src/**/*.py") == "src/stats.py"
    assert await call(toolbox, "list", pattern="*.rs") == "(Nothing is there.)"


@pytest.mark.parametrize("path", ["..", "/", "/etc", "../work/..", "link"])
async def test_listing_and_searching_stay_inside(toolbox: Toolbox, folder: Path, path: str) -> None:
    (folder / "link").symlink_to("..")
    for name, more in (("list", {}), ("search", {"pattern": "secret"})):
        answer = await call(toolbox, name, path=path, **more)
        assert answer.startswith("Error: ")
        assert "outside" in answer


async def test_a_search_finds_lines_and_follows_no_link(toolbox: Toolbox, folder: Path) -> None:
    (folder / "link.txt").symlink_to("../secret.txt")
    (folder / "up").symlink_to("..")
    assert await call(toolbox, "search", pattern="secret|sum") == "src/stats.py:2:     return sum(xs) / len(xs)\n"
    assert await call(toolbox, "search", pattern="mean", path="src/stats.py") == "src/stats.py:1: def mean(xs):\n"
    assert await call(toolbox, "search", pattern="mean", glob="*.md") == "(Nothing was found.)"


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "(?P<a", "*"])
async def test_what_is_no_regular_expression_is_told(toolbox: Toolbox, pattern: str) -> None:
    assert "not a regular expression" in await call(toolbox, "search", pattern=pattern)


async def test_a_search_for_everything_has_an_end(toolbox: Toolbox, folder: Path) -> None:
    (folder / "many.txt").write_text("match " * 1000 + "\n" + "match\n" * 5000)
    text = await call(toolbox, "search", pattern="match")
    assert text.endswith("(There are more matches. Search for less.)")
    assert text.count("\n") == 200
    assert len(text) < 100_000


async def test_a_pattern_that_would_take_for_ever_is_stopped(folder: Path) -> None:
    (folder / "a.txt").write_text("found first: aaa\n" + "a" * 60 + "!\n")
    toolbox = Toolbox([Search(Workspace(folder), max_seconds=1.5)], Yes())
    begun = time.monotonic()
    text = await call(toolbox, "search", pattern=r"^(a+)+$|first")
    assert time.monotonic() - begun < 5
    assert text.startswith("a.txt:1: found first")
    assert "ended after" in text


async def test_a_search_imports_nothing_from_the_workspace(toolbox: Toolbox, folder: Path) -> None:
    for name in ("re.py", "json.py", "kvstet.py", "sitecustomize.py"):
        (folder / name).write_text("import pathlib\npathlib.Path(__file__).with_name('owned').touch()\n")
    await call(toolbox, "search", pattern="x")
    assert not (folder / "owned").exists()


HOSTILE = [
    "; touch owned",
    "$(touch owned)",
    "`touch owned`",
    "| touch owned",
    "\ntouch owned\n",
    "--help",
    "-rf",
    "'\";",
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_no_argument_of_another_tool_reaches_a_shell(
    toolbox: Toolbox, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    await call(toolbox, "read", path=text)
    await call(toolbox, "list", path=text)
    await call(toolbox, "list", pattern=text)
    await call(toolbox, "search", pattern=text)
    await call(toolbox, "search", pattern="x", path=text, glob=text)
    await call(toolbox, "edit", path=text, old=text, new=text)
    await call(toolbox, "write", path=f"made/{text}", content=text)
    assert not [path for path in folder.rglob("owned") if path.name == "owned"]


async def test_an_edit_replaces_what_is_there_once(toolbox: Toolbox, folder: Path) -> None:
    answer = await call(toolbox, "edit", path="src/stats.py", old="len(xs)", new="max(len(xs), 1)")
    assert answer == "Changed src/stats.py, 2 lines."
    assert (folder / "src/stats.py").read_text() == "def mean(xs):\n    return sum(xs) / max(len(xs), 1)\n"


@pytest.mark.parametrize(
    ("old", "told"),
    [
        ("median", "has no such text. Read the file again."),
        ("def mean(xs):\n  return", "Its first line stands in line 1"),
        ("xs", "This text is more than once in"),
    ],
)
async def test_an_edit_of_what_is_absent_or_ambiguous_changes_nothing(
    toolbox: Toolbox, folder: Path, old: str, told: str
) -> None:
    before = (folder / "src/stats.py").read_bytes()
    assert told in await call(toolbox, "edit", path="src/stats.py", old=old, new="new")
    assert (folder / "src/stats.py").read_bytes() == before


async def test_an_edit_keeps_line_ends_permissions_and_bytes_that_are_no_text(toolbox: Toolbox, folder: Path) -> None:
    path = folder / "old.bat"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo \xe9\r\nthree\r\n")
    path.chmod(0o750)
    await call(toolbox, "edit", path="old.bat", old="one\n", new="1\n1.5\n")
    assert path.read_bytes() == b"\xef\xbb\xbf1\r\n1.5\r\ntwo \xe9\r\nthree\r\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


async def test_half_a_character_is_not_written(toolbox: Toolbox, folder: Path) -> None:
    for half in ("\\ud800", "\\udc80", "a\\ud800b"):
        assert (await toolbox.call("write", f'{{"path": "x", "content": "{half}"}}')).startswith("Error: ")
    assert not (folder / "x").exists()


async def test_a_file_is_written_and_named_as_new_or_changed(toolbox: Toolbox, folder: Path) -> None:
    assert await call(toolbox, "write", path="a/b.txt", content="1\n2\n") == "Created a/b.txt, 2 lines."
    assert await call(toolbox, "write", path="a/b.txt", content="1\n") == "Changed a/b.txt, 1 lines."
    assert "is this already" in await call(toolbox, "write", path="a/b.txt", content="1\n")
    assert (folder / "a/b.txt").read_text() == "1\n"


async def test_nothing_is_written_or_run_without_a_yes(folder: Path) -> None:
    toolbox = Toolbox(workspace_tools(Workspace(folder), {}), No())
    before = (folder / "README.md").read_text()
    assert await call(toolbox, "write", path="new.txt", content="x") == DECLINED
    assert await call(toolbox, "edit", path="README.md", old="Stats", new="x") == DECLINED
    assert await call(toolbox, "bash", command="touch new.txt") == DECLINED
    assert (folder / "README.md").read_text() == before
    assert not (folder / "new.txt").exists()


async def test_who_only_looks_is_not_asked(folder: Path) -> None:
    asking = Scripted([])
    toolbox = Toolbox(workspace_tools(Workspace(folder), {}), asking)
    await call(toolbox, "read", path="README.md")
    await call(toolbox, "list")
    await call(toolbox, "search", pattern="x")
    assert asking.asked == []


async def test_the_user_sees_what_is_asked_for(folder: Path) -> None:
    asking = Scripted([False, False])
    toolbox = Toolbox(workspace_tools(Workspace(folder), {}), asking)
    await call(toolbox, "edit", path="README.md", old="Stats", new="Statistics")
    await call(toolbox, "bash", command="make test\nrm -rf .")
    edit, bash = asking.asked
    assert "-# Stats\n+# Statistics" in edit.detail
    assert edit.title == "change README.md"
    assert bash.detail == "make test\nrm -rf ."
    assert not bash.repeats


async def test_a_file_that_changes_while_the_user_is_asked_is_left_alone(folder: Path) -> None:
    class Slow:
        async def allows(self, action: object) -> bool:
            (folder / "README.md").write_text("# Mine, Stats\n")
            return True

    toolbox = Toolbox(workspace_tools(Workspace(folder), {}), Slow())
    assert "changed by someone else" in await call(toolbox, "edit", path="README.md", old="Stats", new="x")
    assert (folder / "README.md").read_text() == "# Mine, Stats\n"


def test_read_only_tools_are_those_that_change_nothing(folder: Path) -> None:
    toolbox = Toolbox(reading(workspace_tools(Workspace(folder), {})), Yes())
    assert [schema["function"]["name"] for schema in toolbox.schemas] == ["read", "list", "search"]


async def test_what_is_not_offered_cannot_be_called(folder: Path) -> None:
    toolbox = Toolbox(reading(workspace_tools(Workspace(folder), {})), Yes())
    assert "There is no tool 'bash'" in await call(toolbox, "bash", command="touch new.txt")
    assert not (folder / "new.txt").exists()


def test_schemas_are_plain_and_described(toolbox: Toolbox) -> None:
    for schema in toolbox.schemas:
        parameters = schema["function"]["parameters"]
        assert schema["function"]["description"]
        assert parameters["type"] == "object"
        assert "$ref" not in json.dumps(schema)
        assert all(field["description"] for field in parameters["properties"].values())


async def test_line_ends_are_the_files_own_even_where_the_old_text_has_none(toolbox: Toolbox, folder: Path) -> None:
    (folder / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    await call(toolbox, "edit", path="dos.txt", old="one", new="one\n1.5")
    assert (folder / "dos.txt").read_bytes() == b"one\r\n1.5\r\ntwo\r\n"
    (folder / "mixed.txt").write_bytes(b"one\ntwo\r\n")
    await call(toolbox, "edit", path="mixed.txt", old="one", new="one\n1.5")
    assert (folder / "mixed.txt").read_bytes() == b"one\n1.5\ntwo\r\n"


async def test_a_text_that_overlaps_itself_is_there_twice(toolbox: Toolbox, folder: Path) -> None:
    (folder / "a.txt").write_text("aXaXa")
    assert "more than once" in await call(toolbox, "edit", path="a.txt", old="aXa", new="b")


@pytest.mark.parametrize("new", ["one\ntwo\n", "one\r\ntwo", "one\r\ntwo\u2028"])
async def test_a_change_of_line_ends_is_seen_before_it_is_allowed(folder: Path, new: str) -> None:
    (folder / "dos.txt").write_bytes(b"one\r\ntwo\r\n")
    confirmation = Scripted([False])
    toolbox = Toolbox(workspace_tools(Workspace(folder), {}), confirmation)
    assert await call(toolbox, "write", path="dos.txt", content=new) == DECLINED
    (action,) = confirmation.asked
    assert any(line.startswith("-") and not line.startswith("---") for line in action.detail.split("\n"))
