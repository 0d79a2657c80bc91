"""Which browser the tests take, and what becomes of them where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench_report.browsers import browser_path


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KVSTET_BROWSER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def test_what_is_named_goes_before_what_is_on_the_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = tmp_path / "chromium-browser"
    found.touch(mode=0o755)
    assert browser_path() == found
    monkeypatch.setenv("KVSTET_BROWSER", "/somewhere/else")
    assert browser_path() == Path("/somewhere/else")


def test_without_a_browser_the_tests_are_skipped_and_say_why() -> None:
    with pytest.raises(pytest.skip.Exception, match="none of chromium, chromium-browser, google-chrome is on PATH"):
        browser_path()


def test_without_a_browser_they_fail_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="There is no browser"):
        browser_path()
