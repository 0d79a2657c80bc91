from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest
from tests.api.harness import Site, reply, running

from kvstet.engine.fake_client import ScriptedEngine


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    """Starting and stopping a server takes a third of a second, so one serves all tests that need no other options."""
    with running(ScriptedEngine()) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Site:
    """A server whose model says "Hello."; its engine is as good as new."""
    new = ScriptedEngine(reply("Hello."))
    for field in fields(new):
        setattr(shared_site.engine, field.name, getattr(new, field.name))
    return shared_site
