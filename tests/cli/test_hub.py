"""Models of a hub: which file is taken, and what is told where there is none. The hub is a fake on this machine."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from kvstet.cli.models import hub
from kvstet.cli.models.hub import HubError, chosen, fetch, parts_of

REPO = "owner/repo"
needs_hub = pytest.mark.skipif(find_spec("huggingface_hub") is None, reason="the extra hub is not installed")


@pytest.mark.parametrize(
    ("files", "quant", "wanted"),
    [
        (["m-Q4_K_M.gguf", "m-Q8_0.gguf", "README.md"], None, "m-Q4_K_M.gguf"),
        (["m-Q4_K_M.gguf", "m-Q8_0.gguf"], "q8_0", "m-Q8_0.gguf"),
        (["m.Q4_K_M.gguf", "m.Q4_K_S.gguf", "m.Q4_K.gguf"], "Q4_K", "m.Q4_K.gguf"),
        (["m-F16.gguf", "mmproj-F16.gguf"], None, "m-F16.gguf"),
        (["m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"], None, "m-Q4_K_M.gguf"),
        (["m-IQ4_XS.gguf", "m-UD-Q4_K_XL.gguf"], "Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        (
            ["Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "m-Q8_0.gguf"],
            None,
            "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
        ),
    ],
)
def test_the_file_of_the_quant_is_taken(files: list[str], quant: str | None, wanted: str):
    assert chosen(REPO, files, quant) == wanted


@pytest.mark.parametrize(
    ("files", "quant", "words"),
    [
        (["README.md", "mmproj-F16.gguf"], None, "has no GGUF file"),
        (["m-Q8_0.gguf", "m-F16.gguf"], None, "several others: add :QUANT. It has: m-F16.gguf, m-Q8_0.gguf"),
        (["m-Q8_0-00001-of-00002.gguf", "m-IQ4_NL.gguf"], "Q4_NL", "no Q4_NL. It has: m-IQ4_NL.gguf, m-Q8_0.gguf"),
        (["m-Q8_0.gguf"], "Q4_K_M", "no Q4_K_M. It has: m-Q8_0.gguf"),
    ],
)
def test_where_none_fits_all_are_told(files: list[str], quant: str | None, words: str):
    with pytest.raises(HubError, match=re.escape(words)):
        chosen(REPO, files, quant)


def test_all_parts_of_a_split_model_are_taken():
    parts = [f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert parts_of(parts[0], parts) == parts
    with pytest.raises(HubError, match="00003-of-00003"):
        parts_of(parts[0], parts[:2])


@pytest.mark.parametrize("name", ["hf:", "hf:repo", "hf:a/b/c", "hf:a/b:", "hf:a/b:Q4:1"])
def test_a_name_that_is_none_is_told(name: str):
    with pytest.raises(HubError, match="hf:OWNER/REPO"):
        fetch(name)


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(HubError, match=r"pip install 'kvstet\[hub\]'"):
        hub.fetch("hf:owner/repo")


# Against a hub


@dataclass
class FakeHub:
    """Files of one repository, as the hub's API has them."""

    files: dict[str, bytes]
    url: str = ""
    token: str | None = None
    """Asked for, if there is one."""
    breaks_after: int | None = None
    """Bytes of the next file, then the connection is cut; once."""
    ranges: list[str] = field(default_factory=list[str])
    """Asked for, in order."""


@contextmanager
def hub_of(files: dict[str, bytes]) -> Iterator[FakeHub]:
    fake = FakeHub(files)
    sha = "0123456789abcdef0123456789abcdef01234567"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if fake.token is not None and self.headers.get("authorization") != f"Bearer {fake.token}":
                self.answer(401, b'{"error": "who"}', {"X-Error-Code": "GatedRepo", "X-Error-Message": "It is gated."})
            elif self.path.startswith(f"/api/models/{REPO}/tree/"):
                tree = [{"type": "file", "path": name, "size": len(data), "oid": sha} for name, data in files.items()]
                self.answer(200, json.dumps(tree).encode())
            elif self.path.startswith(f"/api/models/{REPO}"):
                info = {"id": REPO, "sha": sha, "siblings": [{"rfilename": name} for name in files]}
                self.answer(200, json.dumps(info).encode())
            elif (name := self.path.partition("?")[0].removeprefix(f"/{REPO}/resolve/").partition("/")[2]) in files:
                self.send_file(files[name])
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def send_file(self, data: bytes) -> None:
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
            wanted = self.headers.get("range")
            if self.command == "GET":
                fake.ranges.append(wanted or "all")
            if wanted is not None and self.command == "GET":
                start = int(wanted.removeprefix("bytes=").split("-")[0])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                self.answer(206, data[start:], headers)
            else:
                self.answer(200, data, headers)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fake.breaks_after is not None and len(body) > fake.breaks_after:
                self.wfile.write(body[: fake.breaks_after])
                fake.breaks_after, self.close_connection = None, True
                return
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def fetch_elsewhere(url: str, home: Path, name: str, **environment: str) -> tuple[str, str]:
    """`fetch` in a process that knows no other hub; what it returned, and what it said."""
    code = (
        "import sys; from kvstet.cli.models.hub import HubError, fetch\n"
        "try: print(fetch(sys.argv[1]))\nexcept HubError as error: print('HubError:', error)"
    )
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    ended = subprocess.run(
        [sys.executable, "-c", code, name],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
        env=kept | variables | environment,
    )
    return ended.stdout.strip(), ended.stderr


pytestmark = pytest.mark.timeout(300)

MODEL = bytes(range(256)) * 100_000
PARTS = {f"m-Q4_K_M-{number:05}-of-00002.gguf": bytes([number]) * 1000 for number in (1, 2)}


@needs_hub
def test_a_model_is_downloaded_once_and_found_again_without_the_hub(tmp_path: Path):
    with hub_of({"m-Q8_0.gguf": MODEL, "README.md": b"x", **PARTS}) as fake:
        found, said = fetch_elsewhere(fake.url, tmp_path, f"hf:{REPO}:Q8_0", TQDM_POSITION="-1")
        assert Path(found).read_bytes() == MODEL
        assert "m-Q8_0.gguf" in said, "there is a progress bar, on terminals and where the variable asks for it"
        first, _ = fetch_elsewhere(fake.url, tmp_path, f"hf:{REPO}")
        assert [path.name for path in sorted(Path(first).parent.glob("*of*.gguf"))] == list(PARTS)
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        again, _ = fetch_elsewhere(fake.url, tmp_path, f"hf:{REPO}:Q8_0", **environment)
        assert again == found
        missing, _ = fetch_elsewhere(fake.url, tmp_path, f"hf:{REPO}:F16", **environment)
        assert missing.startswith("HubError: The hub cannot be reached")
        assert "owner/repo in F16 was not downloaded before" in missing


@needs_hub
def test_an_interrupted_download_goes_on(tmp_path: Path):
    with hub_of({"m.gguf": MODEL}) as fake:
        fake.breaks_after = 20_000_000
        for _ in range(2):  # Some versions go on by themselves.
            found, _ = fetch_elsewhere(fake.url, tmp_path, f"hf:{REPO}")
        assert Path(found).read_bytes() == MODEL
        starts = [int(text.removeprefix("bytes=").split("-")[0]) for text in fake.ranges if text != "all"]
        assert max(starts) > 0


@needs_hub
def test_the_hubs_refusals_are_told(tmp_path: Path):
    with hub_of({"m.gguf": b"GGUF"}) as fake:
        told, _ = fetch_elsewhere(fake.url, tmp_path, "hf:owner/other")
        assert told.startswith("HubError: The hub does not give out owner/other")
        fake.token = "sesame"
        told, _ = fetch_elsewhere(fake.url, tmp_path, f"hf:{REPO}")
        assert told.startswith(f"HubError: The hub does not give out {REPO}")
        found, _ = fetch_elsewhere(fake.url, tmp_path, f"hf:{REPO}", HF_TOKEN="sesame")
        assert Path(found).read_bytes() == b"GGUF"
