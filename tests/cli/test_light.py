"""Without libllama: what a gateway's user has installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HIDDEN = "import sys\nfor name in ('llama_cpp', 'mcp', 'matplotlib', 'huggingface_hub'): sys.modules[name] = None\n"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, as it goes where no extra is installed."""
    code = f"{HIDDEN}sys.argv[1:] = {list(arguments)!r}\nfrom kvstet.cli import main\nmain()"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_what_needs_no_model_runs_without_libllama(tmp_path: Path):
    prompt = tmp_path / "prompt.md"
    prompt.write_text("You are a careful engineer.")
    assert run("lint", str(prompt)).returncode == 0
    assert run("gateway", "--help").returncode == 0
    assert run("agent", "--help").returncode == 0
    assert run("usage").returncode == 0


def test_what_needs_libllama_says_so_in_a_sentence(tmp_path: Path):
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    finished = run("serve", str(model), "--port", "0", "--no-cache-disk")
    assert finished.returncode == 1
    assert "This needs libllama: pip install 'kvstet[engine]' brings it." in finished.stderr
    assert "Traceback" not in finished.stderr
