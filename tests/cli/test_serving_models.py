"""A real `kvstet serve` with several models, and one with adapters."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from tests.adapters import write_adapter
from tests.cli.harness import Served, children, eventually, serving, user
from tests.cli.test_restart import keeping, kill_all, wait_until_written
from tests.toys import toy_path

pytestmark = pytest.mark.timeout(400)

QUESTION = "Name the capital of France. " * 20
TOY = "llama-dense"


def num_engines(served: Served) -> int:
    return len(children(served.process.pid))


def test_two_models_are_served_by_name_and_rest_when_nobody_asks(tmp_path: Path, smollm2_path: Path):
    toy = toy_path(TOY, context_length=2048, vocabulary=smollm2_path)
    config = tmp_path / "kvstet.toml"
    config.write_text(f'[models.toy]\npath = "{toy}"\naliases = ["gpt-4o"]\nctx-size = 1024\n')
    options = ("--config", str(config), "--model", f"small={smollm2_path}", "--unload-after", "0.5")
    with serving(tmp_path, *options) as served:
        assert "loaded when it is asked for" in served.text
        assert eventually(lambda: num_engines(served) == 0), "the first model was loaded at the start, and rests"
        refused = served.post("/v1/chat/completions", {"model": "big", "messages": user("Hi")})
        assert refused.status_code == 404
        assert "small, toy, gpt-4o" in refused.json()["error"]["message"]
        answers = {name: served.chat(QUESTION, model=name) for name in ("small", "gpt-4o")}
        texts = {name: answer["choices"][0]["message"]["content"] for name, answer in answers.items()}
        assert "Paris" in texts["small"]
        assert texts["gpt-4o"] != texts["small"]
        listed = {model["id"]: model for model in served.get("/v1/models").json()["data"]}
        # LIGHT's --ctx-size prevails over the file's.
        assert listed["toy"]["meta"]["n_ctx"] == 2048
        assert eventually(lambda: num_engines(served) == 0)
        assert served.get("/health").status_code == 200
        again = served.chat(QUESTION, model="small")["choices"][0]["message"]["content"]
        assert again == texts["small"]
        # At the start, for the first question, and for this one; it may have been unloaded again by now.
        assert served.text.count("loaded small in") == 3


def test_state_of_one_adapter_is_not_found_by_another(tmp_path: Path, smollm2_path: Path):
    toy = toy_path(TOY, context_length=2048, vocabulary=smollm2_path)
    one, two = (write_adapter(tmp_path / f"{seed}.gguf", TOY, seed=seed) for seed in (1, 2))
    adapters = {"none": (), "one": ("--lora", str(one)), "two": ("--lora", str(two))}
    loaded: dict[str, list[int]] = {name: [] for name in adapters}
    logprobs: dict[str, list[float]] = {name: [] for name in adapters}
    for name in ("none", "one", "two", "one"):
        with keeping(tmp_path, toy, *adapters[name]) as served:
            answer = served.chat(QUESTION, logprobs=True)
            loaded[name].append(answer["kvstet"]["loaded"] + answer["kvstet"]["reused"])
            logprobs[name].append(answer["choices"][0]["logprobs"]["content"][0]["logprob"])
            wait_until_written(served)
            kill_all(served.process)
    assert [loaded["none"], loaded["two"], loaded["one"][:1]] == [[0], [0], [0]]
    assert loaded["one"][1] > 100
    assert logprobs["one"][1] == pytest.approx(logprobs["one"][0], abs=1e-3)
    first = [found[0] for found in logprobs.values()]
    assert min(abs(a - b) for a, b in combinations(first, 2)) > 0.01
