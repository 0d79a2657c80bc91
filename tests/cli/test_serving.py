"""`kvstet serve` on a real model, asked as clients ask it: through the official SDK, and plainly."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import pytest
from tests.cli.harness import Body, Served, command, serving, user

pytestmark = pytest.mark.timeout(300)

CAPITAL = "Name the capital of France."
COUNTING = "1, 2, 3, 4,"
"""The model is so sure of what follows that no rounding changes it."""

OPTIONS: dict[str, Any] = {"model": "any-name", "messages": user(CAPITAL), "temperature": 0, "max_tokens": 8}
USAGE = {"stream_options": {"include_usage": True}}

Answer = tuple[str, Any]
"""Text and usage."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), "--alias", "tiny", "--alias", "small") as served:
        yield served


def text_of(answer: Body) -> str:
    choice = answer["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def check_costs(answer: Body) -> None:
    """Usage, timings and the sources tell one story."""
    usage, timings, costs = answer["usage"], answer["timings"], answer["kvstet"]
    sources = [costs[source] for source in ("reused", "loaded", "shifted", "computed")]
    assert sum(sources) == usage["prompt_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == sum(sources[:3]) == timings["cache_n"]
    assert timings["prompt_n"] == costs["computed"] >= 1
    assert timings["predicted_n"] == usage["completion_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert timings["prompt_ms"] == pytest.approx(1000 * costs["compute_seconds"])
    assert timings["predicted_ms"] == pytest.approx(1000 * costs["decode_seconds"])
    assert costs["compute_seconds"] > 0
    assert min(costs["queue_seconds"], costs["load_seconds"]) >= 0
    assert costs["fidelity"] == "exact"
    assert str(costs["computed"]) in costs["verdict"]


# Start


def test_the_start_up_text_says_address_model_memory_and_cache(served: Served):
    rows = dict(line.split(maxsplit=1) for line in served.text.splitlines()[:5])
    assert list(rows) == ["address", "model", "context", "memory", "cache"]
    assert rows["address"].strip() == f"{served.url}/v1"
    assert "135M" in rows["model"]
    assert "MiB" in rows["model"]
    assert rows["context"].strip() == "2,048 tokens a request, 4 requests at a time"
    assert rows["memory"].startswith("attention: a prompt resumes at any token")
    assert rows["cache"].startswith("2,048 tokens live, 2,048 MiB in RAM (about ")


def test_each_request_leaves_two_lines_in_the_log(served: Served):
    num_before = len(served.text.splitlines())
    answer = served.complete("The log says", max_tokens=2)
    started, finished = served.text.splitlines()[num_before:]
    assert f"prompt {answer['usage']['prompt_tokens']}: reused 0, loaded 0, to compute" in started
    assert "length: 2 tokens, prompt " in finished


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(served: Served):
    port = served.url.rpartition(":")[2]
    second = subprocess.run(command("serve", "--port", port), capture_output=True, text=True, timeout=120, check=False)
    assert second.returncode == 1
    assert second.stderr.startswith("kvstet: Address already in use")
    assert port in second.stderr
    assert second.stderr.count("\n") == 1


# The SDK


def ask_sync(served: Served) -> Answer:
    with served.sdk() as client:
        answer = client.chat.completions.create(**OPTIONS)
    return answer.choices[0].message.content or "", answer.usage


def stream_sync(served: Served) -> Answer:
    with served.sdk() as client, client.chat.completions.create(stream=True, **USAGE, **OPTIONS) as stream:
        chunks = list(stream)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks[-1].usage


def ask_async(served: Served) -> Answer:
    async def ask() -> Answer:
        async with served.async_sdk() as client:
            answer = await client.chat.completions.create(**OPTIONS)
        return answer.choices[0].message.content or "", answer.usage

    return asyncio.run(ask())


def stream_async(served: Served) -> Answer:
    async def ask() -> Answer:
        async with served.async_sdk() as client:
            stream = await client.chat.completions.create(stream=True, **USAGE, **OPTIONS)
            async with aclosing(stream.__aiter__()) as events:
                chunks = [chunk async for chunk in events]
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks[-1].usage

    return asyncio.run(ask())


@pytest.mark.parametrize("ask", [ask_sync, stream_sync, ask_async, stream_async])
def test_the_official_sdk_is_answered(served: Served, ask: Callable[[Served], Answer]):
    text, usage = ask(served)
    assert text == "The capital of France is Paris."
    assert usage.completion_tokens == 8
    assert usage.total_tokens == usage.prompt_tokens + 8
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_the_sdk_streams_text_completions(served: Served):
    with served.sdk() as client:
        stream = client.completions.create(model="m", prompt=COUNTING, max_tokens=6, temperature=0, stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == " 5, 6,"


def test_requests_at_once_are_all_answered(served: Served):
    """Six, where four decode at a time."""

    async def ask_all() -> list[str]:
        async with served.async_sdk() as client:
            asked = [
                client.completions.create(model="m", prompt=f"{n}, {COUNTING}", max_tokens=3, temperature=0)
                for n in range(6)
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask_all()) == [" 5,"] * 6


# What is reused


def test_an_appended_turn_reuses_the_whole_conversation(served: Served):
    messages = [{"role": "system", "content": "You know all rivers."}, *user("Name a river in France.")]
    first = served.ask("/v1/chat/completions", messages=messages)
    more = [*messages, {"role": "assistant", "content": text_of(first)}, *user("And one in Egypt.")]
    second = served.ask("/v1/chat/completions", messages=more)
    for answer in (first, second):
        check_costs(answer)
    num_first = first["usage"]["prompt_tokens"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= num_first
    assert second["kvstet"]["known"] >= num_first


def test_side_requests_cost_the_session_nothing(served: Served):
    """More of them than branches stay live, so that the session comes back from memory."""
    session = [{"role": "system", "content": "You are a patient gardener."}, *user("When do I plant leeks?")]
    first = served.ask("/v1/chat/completions", messages=session)
    for n in range(9):
        served.complete(f"{n} bottles of beer on the wall", max_tokens=1)
    second = served.ask("/v1/chat/completions", messages=[*session, *user("And onions?")])
    check_costs(second)
    # All but the generation prompt of the first request is the beginning of the second.
    num_shared = len(served.post("/tokenize", {"content": prompt_of(served, session)}).json()["tokens"])
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] >= num_shared
    assert num_shared > 20
    assert first["usage"]["prompt_tokens"] > num_shared


def prompt_of(served: Served, messages: list[dict[str, str]], *, add_generation_prompt: bool = False) -> str:
    body = {"messages": messages, "add_generation_prompt": add_generation_prompt}
    return served.post("/apply-template", body).json()["prompt"]


def test_the_streams_last_chunk_has_the_costs(served: Served):
    body = {"prompt": COUNTING, "max_tokens": 4, "stream": True, **USAGE}
    events = served.post("/v1/completions", body).text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    check_costs(json.loads(events[-2].removeprefix("data: ")))


def test_the_metrics_add_up_with_what_was_asked(served: Served):
    before = served.metrics()
    answers = [served.complete(f"Add up: {COUNTING}", max_tokens=n) for n in (1, 5)]
    answers += [served.chat("Add up.", max_tokens=3)]
    after = served.metrics()

    def risen(name: str) -> float:
        return after[name] - before.get(name, 0)

    for source in ("reused", "loaded", "shifted", "computed"):
        counted = risen(f'kvstet_prompt_tokens_total{{source="{source}"}}')
        assert (source, counted) == (source, sum(answer["kvstet"][source] for answer in answers))
    assert risen("kvstet_generated_tokens_total") == sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert risen('kvstet_requests_total{outcome="ok",route="/v1/completions"}') == 2
    assert risen('kvstet_requests_total{outcome="ok",route="/v1/chat/completions"}') == 1
    assert risen("kvstet_first_token_seconds_count") == 3
    assert after["kvstet_running_requests"] == after["kvstet_waiting_requests"] == 0
    assert after["kvstet_ready"] == 1
    assert after["kvstet_live_cells"] > 0


# Sampling


def test_greedy_replies_are_the_same_cached_or_not(served: Served):
    cold, warm, again = (served.complete(COUNTING, logprobs=0, cache_prompt=cache) for cache in (False, True, True))
    assert text_of(cold) == text_of(warm) == text_of(again) == " 5, 6, 7"[: len(text_of(cold))]
    assert cold["kvstet"]["computed"] == cold["usage"]["prompt_tokens"]
    assert again["kvstet"]["computed"] == 1
    # Sums in another order change the last bits, and quantised weights enlarge that.
    logprobs = [answer["choices"][0]["logprobs"]["token_logprobs"] for answer in (cold, warm, again)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=0.3)
    assert logprobs[0] == pytest.approx(logprobs[2], abs=0.3)


def test_a_seed_repeats_a_draw_and_others_change_it(served: Served):
    prompt = "My favourite number is"
    served.complete(prompt, max_tokens=1)  # From here on all find the same state.
    first, again = (
        [text_of(served.complete(prompt, max_tokens=1, seed=seed, temperature=2)) for seed in range(5)] for _ in "12"
    )
    assert first == again
    assert len(set(first)) > 1


def test_two_choices_share_one_prompt(served: Served):
    computed = 'kvstet_prompt_tokens_total{source="computed"}'
    before = served.metric(computed)
    answer = served.chat("Tell me of two ships.", n=2, temperature=2, seed=1, max_tokens=6)
    check_costs(answer)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert texts[0] != texts[1]
    assert 6 < answer["usage"]["completion_tokens"] <= 12
    # The second one computes only the token that its reply follows.
    assert served.metric(computed) - before == answer["kvstet"]["computed"] + 1


def test_logprobs_tell_the_models_choice(served: Served):
    answer = served.chat(CAPITAL, logprobs=True, top_logprobs=3)
    content = answer["choices"][0]["logprobs"]["content"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == text_of(answer)
    for token in content:
        best = token["top_logprobs"]
        assert len(best) == 3
        assert [one["logprob"] for one in best] == sorted((one["logprob"] for one in best), reverse=True)
        assert (token["token"], token["logprob"]) == (best[0]["token"], best[0]["logprob"])
        assert -3 < token["logprob"] <= 0


def test_a_json_schema_is_kept_by_a_model_that_would_not(served: Served):
    schema = {
        "type": "object",
        "properties": {
            "town": {"enum": ["Paris", "Lyon"]},
            "is_capital": {"type": "boolean"},
            "scores": {"type": "array", "items": {"enum": [1, 2, 3]}, "minItems": 2, "maxItems": 2},
        },
        "required": ["town", "is_capital", "scores"],
        "additionalProperties": False,
    }
    with served.sdk() as client:
        answer = client.chat.completions.create(
            model="m",
            messages=user("Say anything but JSON."),
            response_format={"type": "json_schema", "json_schema": {"name": "town", "schema": schema}},
            temperature=0,
            max_tokens=60,
        )
    told = json.loads(answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert set(told) == {"town", "is_capital", "scores"}
    assert told["town"] in ("Paris", "Lyon")
    assert isinstance(told["is_capital"], bool)
    assert len(told["scores"]) == 2
    assert set(told["scores"]) <= {1, 2, 3}


def test_a_stop_string_ends_the_reply_before_it(served: Served):
    answer = served.complete(COUNTING, max_tokens=16, stop=[", 7", "never"])
    assert text_of(answer) == " 5, 6"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert text_of(served.complete(COUNTING, max_tokens=6, stop="never")) == " 5, 6,"


# Looking at the model


def test_the_model_is_listed_under_its_names(served: Served):
    with served.sdk() as client:
        names = [model.id for model in client.models.list()]
    assert names[1:] == ["tiny", "small"]
    model = served.get("/v1/models/tiny").json()
    assert model["id"] == "tiny"
    assert model["meta"]["n_ctx"] == 2048
    assert served.get("/health").json() == {"status": "ok"}


def test_tokens_make_the_round_trip(served: Served):
    text = "def naïve(): return '🦙' <|im_end|>\n\tend"
    tokens = served.post("/tokenize", {"content": text}).json()["tokens"]
    assert served.post("/detokenize", {"tokens": tokens}).json() == {"content": text}
    (control,) = served.post("/tokenize", {"content": "<|im_end|>"}).json()["tokens"]
    assert control in tokens


def test_the_template_is_applied_as_for_a_request(served: Served):
    prompt = prompt_of(served, user(CAPITAL), add_generation_prompt=True)
    assert prompt.endswith(f"<|im_start|>user\n{CAPITAL}<|im_end|>\n<|im_start|>assistant\n")
    tokens = served.post("/tokenize", {"content": prompt}).json()["tokens"]
    answer = served.chat(CAPITAL, max_tokens=1)
    assert answer["usage"]["prompt_tokens"] == len(tokens)
    assert text_of(served.complete(tokens, max_tokens=1)) == text_of(answer)
