from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.api.harness import Site, as_new, running

from kvstet.engine.fake_client import ScriptedEngine


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    """Starting and stopping a server takes a third of a second, so one serves all tests that need no other options."""
    with running(ScriptedEngine()) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Site:
    """A server whose model says "Hello."; its engine is as good as new."""
    return as_new(shared_site)
