from __future__ import annotations

import pytest
from tests.api.harness import TEMPLATE, Site, running, tokens_of

from kvstet.engine.fake_client import ScriptedEngine


def test_models_tell_the_context_and_the_size(site: Site):
    with site.sdk() as client:
        (model,) = client.models.list().data
    assert model.id == "tiny"
    assert model.model_extra == {
        "meta": {
            "n_vocab": 512,
            "n_ctx_train": 8192,
            "n_ctx": 4096,
            "n_params": 1_000_000,
            "size": 2_000_000,
        }
    }


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_aliases_are_models_too(path: str):
    with running(ScriptedEngine(), aliases=("gpt-4o", "org/local", "tiny")) as site:
        assert [model["id"] for model in site.get(path).json()["data"]] == ["tiny", "gpt-4o", "org/local"]
        with site.sdk() as client:
            assert client.models.retrieve("org/local").id == "org/local"


def test_a_text_is_tokenised(site: Site):
    assert site.post("/tokenize", {"content": "é<|im_end|>"}).json() == {"tokens": tokens_of("é<|im_end|>")}


def test_special_tokens_can_be_read_as_text(site: Site):
    answer = site.post("/tokenize", {"content": "<|im_end|>", "parse_special": False}).json()
    assert answer == {"tokens": list(b"<|im_end|>")}


def test_pieces_are_text_or_else_bytes(site: Site):
    answer = site.post("/tokenize", {"content": "aé<|im_end|>", "with_pieces": True}).json()
    assert answer["tokens"] == [
        {"id": 97, "piece": "a"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
        {"id": tokens_of("<|im_end|>")[0], "piece": "<|im_end|>"},
    ]


def test_tokens_become_text_again(site: Site):
    text = "né <|im_end|>" * 10_000
    assert site.post("/detokenize", {"tokens": tokens_of(text)}).json() == {"content": text}


@pytest.mark.parametrize("tokens", [[-1], [99999], ["a"], "a", None])
def test_what_are_no_tokens_is_a_400(site: Site, tokens: object):
    response = site.post("/detokenize", {"tokens": tokens})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("tokens")


def test_a_conversation_is_shown_as_the_model_sees_it(site: Site):
    messages = [{"role": "system", "content": "Be"}, {"role": "user", "content": "Hi"}]
    answer = site.post("/apply-template", {"messages": messages}).json()
    assert answer["prompt"] == (
        "<|im_start|>system\nBe<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer["spans"] == [
        {"index": 0, "role": "system", "start": 0, "stop": 12},
        {"index": 1, "role": "user", "start": 12, "stop": 22},
        {"index": None, "role": "assistant", "start": 22, "stop": 33},
    ]


def test_the_generation_prompt_can_be_left_out(site: Site):
    body = {"messages": [{"role": "user", "content": "Hi"}], "add_generation_prompt": False}
    assert site.post("/apply-template", body).json()["prompt"].endswith("Hi<|im_end|>\n")


def test_a_template_that_raises_is_a_400(site: Site):
    assert site.post("/apply-template", {"messages": [{"role": "tool", "content": "bad"}]}).status_code == 400


def test_the_root_says_what_this_is(site: Site):
    answer = site.get("/").json()
    assert answer["name"] == "kvstet"
    assert answer["models"] == ["tiny"]
    assert "/v1/chat/completions" in answer["paths"]


@pytest.mark.parametrize("path", ["/health", "/v1/health"])
def test_health_follows_the_engine(site: Site, path: str):
    assert (site.get(path).status_code, site.get(path).json()) == (200, {"status": "ok"})
    site.engine.is_ready = False
    response = site.get(path)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "engine_not_ready"


def test_llama_servers_probes_are_answered(site: Site):
    props = site.get("/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 4096
    assert (props["total_slots"], props["model_alias"]) == (4, "tiny")
    assert props["chat_template"] == TEMPLATE
    slots = site.get("/slots").json()
    assert [slot["id"] for slot in slots] == [0, 1, 2, 3]
    assert not any(slot["is_processing"] for slot in slots)
