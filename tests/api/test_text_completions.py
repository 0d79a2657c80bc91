from __future__ import annotations

import json
from typing import Any

import pytest
from tests.api.harness import Site, reply, tokens_of

from kvstet.engine.messages import TokenLogprobs


def ask(site: Site, **fields: Any) -> dict[str, Any]:
    response = site.post("/v1/completions", fields)
    assert response.status_code == 200, response.text
    return response.json()


def refused(site: Site, **fields: Any) -> dict[str, Any]:
    response = site.post("/v1/completions", {"prompt": "x", **fields})
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_a_text_is_continued(site: Site):
    with site.sdk() as client:
        answer = client.completions.create(model="m", prompt="Once")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello.", "stop")
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 7)
    assert site.prompt == "Once"


def test_a_stream_tells_the_same(site: Site):
    with site.sdk() as client:
        stream = list(
            client.completions.create(model="m", prompt="x", stream=True, stream_options={"include_usage": True})
        )
    assert "".join(choice.text for chunk in stream for choice in chunk.choices) == "Hello."
    assert stream[-1].usage is not None
    assert {"timings", "kvstet"} <= set(stream[-1].model_extra or {})


def test_tokens_are_a_prompt(site: Site):
    ask(site, prompt=tokens_of("<|im_start|>Hi"))
    assert site.engine.requests[0].tokens.tolist() == tokens_of("<|im_start|>Hi")


def test_several_prompts_have_choices_in_order(site: Site):
    site.engine.scripts.extend(reply(text) for text in ("A", "B", "C", "D"))
    answer = ask(site, prompt=["one", tokens_of("three")], n=2, seed=5)
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == list(enumerate("ABCD"))
    assert answer["usage"]["prompt_tokens"] == 8
    assert answer["kvstet"]["computed"] == 8
    assert [len(request.tokens) for request in site.engine.requests] == [3, 3, 5, 5]
    assert [request.sampling.seed for request in site.engine.requests] == [5, 6, 5, 6]


def test_the_prompt_is_echoed_if_asked_for(site: Site):
    assert ask(site, prompt="Say: ", echo=True)["choices"][0]["text"] == "Say: Hello."
    assert ask(site, prompt=tokens_of("Say: "), echo=True)["choices"][0]["text"] == "Say: Hello."


def test_the_echo_begins_a_stream(site: Site):
    body = {"prompt": ["a: ", "b: "], "echo": True, "stream": True}
    events = site.post("/v1/completions", body).text.split("\n\n")
    texts = {0: "", 1: ""}
    for event in events[:-2]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {0: "a: Hello.", 1: "b: Hello."}


def test_log_probabilities_have_the_old_form(site: Site):
    top = ((ord("H"), -0.1), (ord("J"), -2.5))
    site.engine.script = reply("Hi", logprobs=[TokenLogprobs(-0.1, top), TokenLogprobs(-0.5, ()), TokenLogprobs(0, ())])
    with site.sdk() as client:
        found = client.completions.create(model="m", prompt="x", logprobs=2).choices[0].logprobs
    assert found is not None
    assert found.tokens == ["H", "i"]
    assert found.token_logprobs == [-0.1, -0.5]
    assert found.top_logprobs == [{"H": -0.1, "J": -2.5}, {}]
    assert found.text_offset == [0, 1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, 99999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 129}, "n"),
        ({"prompt": ["a"] * 65, "n": 2}, "n"),
        ({"prompt": {"text": "a"}}, "prompt"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(site: Site, fields: dict[str, Any], param: str):
    assert refused(site, **fields)["param"] == param


def test_best_of_one_is_what_happens_anyway(site: Site):
    assert ask(site, prompt="x", best_of=1, suffix="")["choices"][0]["text"] == "Hello."


def test_the_path_without_v1_works_as_well(site: Site):
    assert site.post("/completions", {"prompt": "x"}).json()["choices"][0]["text"] == "Hello."
