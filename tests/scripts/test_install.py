from __future__ import annotations

import sys
from pathlib import Path

import pytest

import install

WHEEL = "llama_cpp_python-0.3.36-py3-none-linux_x86_64.whl"


@pytest.fixture(autouse=True)
def _away_from_the_tree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("KVSTET_WHEELS", str(tmp_path / "wheels"))
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(install, "LOG", tmp_path / "log")


def fake_build(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Builds run this Python code, with the folder for the wheel in ``folder``."""
    monkeypatch.setattr(
        install, "build_command", lambda _, folder: [sys.executable, "-c", f"folder = {folder!r}\n{code}"]
    )


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.name != "lock")


def test_a_build_lands_in_the_cache_and_is_used_from_then_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake_build(monkeypatch, f"open(folder + '/{WHEEL}', 'w').write('built')")
    first = install.engine_wheel()
    fake_build(monkeypatch, "raise SystemExit('built twice')")
    assert install.engine_wheel() == first
    assert first.read_text() == "built"
    assert first.is_relative_to(tmp_path / "wheels")


def test_a_failed_build_leaves_nothing_behind_and_shows_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    fake_build(monkeypatch, f"open(folder + '/{WHEEL}', 'w').write('half')\nraise SystemExit('no space left')")
    with pytest.raises(install.InstallError, match="no space left"):
        install.engine_wheel()
    assert files(tmp_path / "wheels") == []


def test_what_a_killed_build_left_is_cleared_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    cache = tmp_path / "wheels" / install.machine_key(install.engine_requirement())
    (cache / "building-x").mkdir(parents=True)
    (cache / "building-x" / WHEEL).write_text("half")
    fake_build(monkeypatch, f"open(folder + '/{WHEEL}', 'w').write('whole')")
    assert install.engine_wheel().read_text() == "whole"
    assert files(tmp_path / "wheels") == [WHEEL]


def test_a_wheel_for_another_cpu_or_another_build_is_not_taken(monkeypatch: pytest.MonkeyPatch):
    keys = [install.machine_key("llama-cpp-python==0.3.36"), install.machine_key("llama-cpp-python==0.3.37")]
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    keys.append(install.machine_key("llama-cpp-python==0.3.36"))
    monkeypatch.setattr(install, "cpu_features", lambda: "sse2")
    keys.append(install.machine_key("llama-cpp-python==0.3.36"))
    assert len(set(keys)) == 4


def test_a_missing_compiler_is_named_with_the_command_that_brings_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(install.InstallError, match=r"apt install g\+\+"):
        install.check_compiler()


def test_the_build_reports_how_many_files_are_compiled():
    line = "  [70/140] /usr/bin/c++ -DGGML_SHARED -o ggml.c.o"
    assert install.ninja_progress(line) == "compiling  50% (70 of 140 files)"
    assert install.ninja_progress("  warning: something") is None


def test_the_build_starts_from_source_and_bypasses_pips_own_wheels():
    command = install.build_command("llama-cpp-python==0.3.36", "out")
    assert {"--no-cache-dir", "--no-binary", "llama-cpp-python", "llama-cpp-python==0.3.36"} <= set(command)


@pytest.mark.parametrize(
    ("needed", "flags"),
    [
        ((), ""),
        (("-fno-dse",), "-fno-dse"),
        (("impossible",), "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"),
    ],
)
def test_a_cpu_with_amx_gets_the_flags_with_which_a_probe_runs(
    monkeypatch: pytest.MonkeyPatch, needed: tuple[str, ...], flags: str
):
    monkeypatch.setattr(install, "cpu_features", lambda: "avx2 amx_tile")
    monkeypatch.setattr(install, "runs", lambda _, *given: set(needed) <= set(given))
    install.compiler_flags.cache_clear()
    assert install.build_environment().get("CXXFLAGS", "") == flags
    assert flags in " ".join(install.compiler_flags())
    install.compiler_flags.cache_clear()


def test_a_probe_program_tells_what_runs():
    assert install.runs("int main(void) { return 0; }")
    assert not install.runs("#include <stdlib.h>\nint main(void) { abort(); }")
    assert not install.runs("this is no C")
