"""The search itself, as a process of its own: ``python -I -m kvstet.agent.tools.matching``, its question as argument.

A pattern can take for ever on an unlucky line, and Python cannot be interrupted there. A process can be ended. Imports
little, since it starts for every search.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvstet.agent.tools.ignore import Glob
from kvstet.agent.tools.walk import walk
from kvstet.agent.tools.workspace import Workspace, is_binary, read_at
from kvstet.errors import ToolFailed

MAX_MATCHES = 200
_MAX_FILE_BYTES = 5_000_000
_MAX_LINE_CHARACTERS = 300


def question(workspace: Workspace, path: str, pattern: str, glob: str) -> str:
    """What `main` is asked."""
    return json.dumps({"root": str(workspace.root), "path": path, "pattern": pattern, "glob": glob})


def matches(asked: dict[str, Any]) -> Iterator[str]:
    """``path:number: line`` for each line that matches. ToolFailed, re.error."""
    regex, glob = re.compile(asked["pattern"]), Glob.of(asked["glob"]) if asked["glob"] else None
    for path, data in _files(Workspace(Path(asked["root"])), asked["path"]):
        if (glob is None or glob.fits(path)) and not is_binary(data):
            for number, line in enumerate(data.decode(errors="replace").splitlines(), 1):
                if regex.search(line):
                    yield f"{path}:{number}: {line[:_MAX_LINE_CHARACTERS]}"


def _files(workspace: Workspace, path: str) -> Iterator[tuple[str, bytes]]:
    if not workspace.is_folder(path):
        yield "/".join(workspace.parts(path)), workspace.read(path).data
        return
    for entry in walk(workspace, workspace.parts(path)):
        if entry.is_folder:
            continue
        try:
            found = read_at(entry.folder, entry.name, max_bytes=_MAX_FILE_BYTES)
        except ToolFailed:
            # Too large, a link, a device, or not ours to read: nothing that a search is for.
            continue
        yield entry.path, found.data


def main() -> int:
    """0: the matches are on standard output; 1: there are more; 2: what is wrong is there instead."""
    try:
        for number, line in enumerate(matches(json.loads(sys.argv[1]))):
            if number == MAX_MATCHES:
                return 1
            sys.stdout.buffer.write(f"{line}\n".encode(errors="replace"))
            # Whoever runs out of time keeps what was found.
            sys.stdout.buffer.flush()
    except re.error as error:
        print(f"This is not a regular expression: {error}.")
        return 2
    except ToolFailed as error:
        print(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
