"""Through the official SDK, as clients do it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from openai import APIError, AsyncOpenAI, BadRequestError
from tests.api.harness import END, Site, reply, running, tokens_of

from kvstet.api.body import decode
from kvstet.api.openai.prompts import conversation_of
from kvstet.api.openai.requests import ChatRequest
from kvstet.chat.reply.grammar import ANY_CALL, CallDemand
from kvstet.engine.fake_client import Refuse, Say, ScriptedEngine
from kvstet.engine.messages import TokenLogprobs
from kvstet.errors import EngineCrashed
from kvstet.types import DEFAULT_SAMPLING, Reuse

USER = [{"role": "user", "content": "Hi"}]
PROMPT = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
NUM_PROMPT = len(tokens_of(PROMPT))


def ask(site: Site, **fields: Any) -> dict[str, Any]:
    """The JSON answer to a chat request that must succeed."""
    response = site.post("/v1/chat/completions", {"messages": USER, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def chunks(site: Site, path: str = "/v1/chat/completions", **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed request, which must end with [DONE]."""
    response = site.post(path, {"messages": USER, "stream": True, **fields})
    assert response.status_code == 200, response.text
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_a_question_is_answered(site: Site):
    with site.sdk() as client:
        answer = client.chat.completions.create(model="any-name", messages=USER)
    assert answer.choices[0].message.content == "Hello."
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "any-name"
    assert answer.id.startswith("chatcmpl-")
    assert answer.system_fingerprint.startswith("kvstet-")
    assert site.prompt == PROMPT


def test_a_stream_tells_the_same(site: Site):
    with site.sdk() as client:
        stream = list(client.chat.completions.create(model="any-name", messages=USER, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello."
    assert stream[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in stream] == [None] * (len(stream) - 1) + ["stop"]
    assert len({chunk.id for chunk in stream}) == 1


def test_the_async_sdk_works_with_and_without_streaming(site: Site):
    async def talk(client: AsyncOpenAI) -> tuple[str, str]:
        answer = await client.chat.completions.create(model="m", messages=USER)
        stream = await client.chat.completions.create(model="m", messages=USER, stream=True)
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return answer.choices[0].message.content or "", "".join(parts)

    async def both() -> tuple[str, str]:
        async with site.async_sdk() as client:
            return await talk(client)

    assert asyncio.run(both()) == ("Hello.", "Hello.")


def test_many_requests_at_once_get_their_own_answers(site: Site):
    site.engine.scripts.extend(reply(f"Answer {number}.", token_seconds=0.001) for number in range(20))

    async def all_of_them() -> list[str]:
        async with site.async_sdk() as client:
            questions = [client.chat.completions.create(model="m", messages=USER) for _ in range(20)]
            return [answer.choices[0].message.content or "" for answer in await asyncio.gather(*questions)]

    assert sorted(asyncio.run(all_of_them())) == sorted(f"Answer {number}." for number in range(20))


def test_usage_tells_what_was_cached(site: Site):
    site.engine.script = reply("Hello.", reuse=Reuse(8, 2, 0, NUM_PROMPT - 10, 12))
    with site.sdk() as client:
        usage = client.chat.completions.create(model="m", messages=USER).usage
    assert usage is not None
    assert usage.prompt_tokens == NUM_PROMPT
    assert usage.completion_tokens == len("Hello.") + 1
    assert usage.total_tokens == NUM_PROMPT + len("Hello.") + 1
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 10


def test_every_answer_says_what_it_cost(site: Site):
    site.engine.script = reply("Hello.", reuse=Reuse(8, 2, 0, NUM_PROMPT - 10, 18))
    answer = ask(site)
    assert answer["timings"] == {
        "cache_n": 10,
        "prompt_n": NUM_PROMPT - 10,
        "prompt_ms": 500.0,
        "prompt_per_token_ms": 500.0 / (NUM_PROMPT - 10),
        "prompt_per_second": (NUM_PROMPT - 10) / 0.5,
        "predicted_n": 7,
        "predicted_ms": 250.0,
        "predicted_per_token_ms": 250.0 / 7,
        "predicted_per_second": 28.0,
    }
    sentence = answer["kvstet"].pop("verdict")
    assert "the prompt was" not in sentence
    assert isinstance(answer["kvstet"].pop("edits"), list)
    assert answer["kvstet"] == {
        "reused": 8,
        "loaded": 2,
        "shifted": 0,
        "computed": NUM_PROMPT - 10,
        "known": 18,
        "echoed": 0,
        "masked": [],
        "queue_seconds": 0.001,
        "load_seconds": 0.002,
        "compute_seconds": 0.5,
        "decode_seconds": 0.25,
        "fidelity": "exact",
        "substitutions": [],
    }


def test_the_verdict_names_the_message_where_the_prompt_left_the_cached_path(site: Site):
    site.engine.script = reply("Hello.", reuse=Reuse(24, 0, 0, 32, 24))
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    with site.sdk() as client:
        answer = client.chat.completions.create(model="m", messages=messages)
    span = len(tokens_of("<|im_start|>system\nBe brief.<|im_end|>\n"))
    assert answer.model_extra is not None
    sentence = answer.model_extra["kvstet"]["verdict"]
    assert f"in message 1 (user), {24 - span} tokens in; message 0 was reused." in sentence


def test_shifted_tokens_make_an_answer_approximate(site: Site):
    site.engine.script = reply("Hello.", reuse=Reuse(8, 0, 2, NUM_PROMPT - 10, 10))
    assert ask(site)["kvstet"]["fidelity"] == "approximate"


def test_costs_are_on_the_last_chunk_of_a_stream(site: Site):
    stream = chunks(site)
    assert [set(chunk) & {"timings", "kvstet", "usage"} for chunk in stream[:-1]] == [set()] * (len(stream) - 1)
    assert stream[-1]["choices"][0]["finish_reason"] == "stop"
    assert {"timings", "kvstet"} <= set(stream[-1])


def test_usage_comes_on_a_chunk_of_its_own_if_asked_for(site: Site):
    stream = chunks(site, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in stream[:-1]] == [None] * (len(stream) - 1)
    assert stream[-2]["choices"][0]["finish_reason"] == "stop"
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == 7
    assert {"timings", "kvstet"} <= set(stream[-1])


def test_tokens_that_are_ready_together_share_a_chunk(site: Site):
    assert [chunk["choices"][0]["delta"] for chunk in chunks(site)] == [
        {"role": "assistant", "content": ""},
        {"content": "Hello."},
        {},
    ]


def test_tokens_that_come_one_by_one_are_sent_one_by_one(site: Site):
    site.engine.script = reply("né", token_seconds=0.01)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks(site)] == ["", "n", "é", None]


def test_text_is_escaped_as_json(site: Site):
    site.engine.script = reply('"\\\n\u2028</script>😀\x00')
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks(site))
    assert text == '"\\\n\u2028</script>😀\x00'


def test_streams_are_not_to_be_buffered_or_cached(site: Site):
    response = site.post("/v1/chat/completions", {"messages": USER, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


def test_a_stop_string_ends_the_reply_and_the_engines_work(site: Site):
    site.engine.script = Say(tokens_of("One, two, three, four"), token_seconds=0.001)
    answer = ask(site, stop=[" thr", ""])
    assert answer["choices"][0]["message"]["content"] == "One, two,"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == len("One, two, thr")
    assert answer["timings"]["predicted_ms"] > 0
    assert site.engine.cancelled == [site.engine.requests[0].id]


def test_a_reply_that_ends_by_itself_cancels_nothing(site: Site):
    ask(site, stop="never")
    assert site.engine.cancelled == []


def test_a_stop_string_never_shows_in_a_stream(site: Site):
    site.engine.script = reply("Fine.\nUser: and", token_seconds=0.001)
    stream = chunks(site, stop="\nUser:")
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in stream) == "Fine."
    assert stream[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_token_limit_ends_the_reply(site: Site, field: str):
    answer = ask(site, **{field: 3})
    assert answer["choices"][0]["message"]["content"] == "Hel"
    assert answer["choices"][0]["finish_reason"] == "length"
    assert site.engine.requests[0].max_new_tokens == 3


@pytest.mark.parametrize("limit", [None, -1])
def test_no_token_limit_is_no_limit(site: Site, limit: int | None):
    ask(site, max_tokens=limit)
    assert site.engine.requests[0].max_new_tokens is None


def test_a_limit_of_no_tokens_computes_the_prompt_only(site: Site):
    answer = ask(site, max_tokens=0)
    assert answer["choices"][0]["message"]["content"] == ""
    assert answer["timings"]["predicted_per_second"] == 0.0


def test_choices_have_seeds_of_their_own_and_share_the_prompt(site: Site):
    site.engine.scripts.extend([reply("One."), reply("Two.")])
    answer = ask(site, n=2, seed=7)
    assert [choice["message"]["content"] for choice in answer["choices"]] == ["One.", "Two."]
    assert [request.sampling.seed for request in site.engine.requests] == [7, 8]
    assert answer["usage"]["prompt_tokens"] == NUM_PROMPT
    assert answer["usage"]["completion_tokens"] == 10
    assert len({request.id for request in site.engine.requests}) == 2


def test_streams_of_several_choices_are_merged(site: Site):
    site.engine.scripts.extend([reply("One.", token_seconds=0.003), reply("Two.", token_seconds=0.002)])
    stream = chunks(site, n=2)
    texts = {0: "", 1: ""}
    for chunk in stream:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {0: "One.", 1: "Two."}
    ends = [choice["finish_reason"] for chunk in stream for choice in chunk["choices"] if choice["finish_reason"]]
    assert ends == ["stop", "stop"]
    assert sum("kvstet" in chunk for chunk in stream) == 1
    assert "kvstet" in stream[-1]


def test_a_choice_that_fails_ends_the_others(site: Site):
    site.engine.scripts.extend([Say(tokens_of("x" * 1000), token_seconds=0.01), Refuse(EngineCrashed("It died."))])
    response = site.post("/v1/chat/completions", {"messages": USER, "n": 2})
    assert response.status_code == 503
    assert site.engine.cancelled == [site.engine.requests[0].id]


def test_log_probabilities_are_told_for_each_token(site: Site):
    top = ((ord("H"), -0.1), (0xFF, float("-inf")))
    site.engine.script = reply("Hi", logprobs=[TokenLogprobs(-0.1, top), TokenLogprobs(-0.5, ()), TokenLogprobs(0, ())])
    with site.sdk() as client:
        answer = client.chat.completions.create(model="m", messages=USER, logprobs=True, top_logprobs=2)
        stream = list(
            client.chat.completions.create(model="m", messages=USER, logprobs=True, top_logprobs=2, stream=True)
        )
    assert site.engine.requests[0].num_logprobs == 2
    assert answer.choices[0].logprobs is not None
    first, second = answer.choices[0].logprobs.content or []
    assert (first.token, first.logprob, first.bytes) == ("H", -0.1, [72])
    assert [(entry.token, entry.logprob) for entry in first.top_logprobs] == [("H", -0.1), ("bytes:\\xff", -9999.0)]
    assert (second.token, second.top_logprobs) == ("i", [])
    streamed = [entry for chunk in stream if (found := chunk.choices[0].logprobs) for entry in found.content or []]
    assert streamed == [first, second]


def test_log_probabilities_without_alternatives_report_the_chosen_token(site: Site):
    ask(site, logprobs=True)
    ask(site, logprobs=False, top_logprobs=0)
    assert [request.num_logprobs for request in site.engine.requests] == [0, None]


@pytest.mark.parametrize(
    ("response_format", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "root ::= ['type']"),
        ({"type": "json_object", "schema": {"enum": [1]}}, "root ::= ['enum']"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 1}}}, "root ::= ['const']"),
        ({"type": "json_schema", "schema": {"const": 1}}, "root ::= ['const']"),
    ],
)
def test_a_response_format_becomes_a_grammar(site: Site, response_format: dict[str, Any], grammar: str | None):
    ask(site, response_format=response_format)
    assert site.engine.requests[0].sampling.grammar == grammar


def test_a_request_that_says_nothing_is_sampled_as_llama_server_does(site: Site):
    ask(site)
    assert site.engine.requests[0].sampling == DEFAULT_SAMPLING


def test_sampling_follows_the_request(site: Site):
    ask(
        site,
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        frequency_penalty=0.2,
        presence_penalty=-0.2,
        dry_multiplier=0.8,
        dry_sequence_breakers=["\n"],
        xtc_probability=0.3,
        seed=42,
        grammar='root ::= "x"',
        logit_bias={"72": -100, "ab": 1},
        ignore_eos=True,
    )
    request = site.engine.requests[0]
    assert request.ignore_eos
    assert request.sampling == replace(
        DEFAULT_SAMPLING,
        temperature=0.0,
        top_p=0.5,
        top_k=7,
        min_p=0.1,
        typical_p=0.9,
        repeat_penalty=1.1,
        repeat_last_n=-1,
        frequency_penalty=0.2,
        presence_penalty=-0.2,
        dry_multiplier=0.8,
        dry_sequence_breakers=("\n",),
        xtc_probability=0.3,
        seed=42,
        grammar='root ::= "x"',
        logit_bias=((72, -100.0), (97, 1.0), (98, 1.0)),
    )


def test_llama_servers_form_of_logit_bias_is_understood(site: Site):
    ask(site, logit_bias=[[72, False], ["a", 0.5]])
    assert site.engine.requests[0].sampling.logit_bias == ((72, float("-inf")), (97, 0.5))


@pytest.mark.parametrize(("seed", "drawn"), [(-1, None), (None, None), (0, 0), (2**32 - 1, 0), (2**40, 2**8)])
def test_seeds_fit_the_engine_and_minus_one_is_a_fresh_one(site: Site, seed: int | None, drawn: int | None):
    ask(site, seed=seed)
    assert site.engine.requests[0].sampling.seed == drawn


def test_the_engine_learns_where_messages_end(site: Site):
    ask(site)
    assert site.engine.requests[0].cuts == (len(tokens_of("<|im_start|>user\nHi<|im_end|>\n")), NUM_PROMPT)


def test_tools_and_template_variables_reach_the_template(site: Site):
    tool = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}
    ask(site, tools=[tool], tool_choice="auto", parallel_tool_calls=True, store=False, reasoning_effort="low")
    assert "[1 tools][effort low]" in site.prompt
    ask(site, chat_template_kwargs={"reasoning_effort": "high"}, prompt_cache_key="x", metadata={"a": 1})
    assert "[effort high]" in site.prompt


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


@pytest.mark.parametrize(
    ("choice", "demand"),
    [
        ("auto", ANY_CALL),
        ("required", CallDemand(is_required=True)),
        (function("ls"), CallDemand(is_required=True, is_parallel=False, names=("ls",))),
        ({"function": {"name": "ls"}}, CallDemand(is_required=True, is_parallel=False, names=("ls",))),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("ls"), function("rm")]}},
            CallDemand(names=("ls", "rm")),
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [function("ls")]}},
            CallDemand(is_required=True, names=("ls",)),
        ),
    ],
)
def test_a_tool_choice_is_a_demand(choice: Any, demand: CallDemand):
    body = {"messages": USER, "tool_choice": choice}
    assert conversation_of(decode(json.dumps(body).encode(), ChatRequest)).demand == demand


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "allowed_tools"},
        {"type": "function"},
        {"type": "allowed_tools", "function": {"name": "ls"}},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
        {"type": "allowed_tools", "allowed_tools": {"tools": [function("ls"), function("cd")]}},
    ],
)
def test_a_choice_of_tools_that_are_not_there_is_refused(site: Site, choice: Any):
    tool = {"type": "function", "function": {"name": "ls", "parameters": {"type": "object"}}}
    answer = site.post("/v1/chat/completions", {"messages": USER, "tools": [tool], "tool_choice": choice})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith("tool_choice")


def test_a_conversation_as_agents_send_it_is_rendered(site: Site):
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": "{}"}}
    ask(
        site,
        messages=[
            {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]},
            {"role": "user", "content": "Hi", "cache_control": {"type": "ephemeral"}},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": ""},
            {"role": "tool", "tool_call_id": "c1", "name": "ls", "content": [{"type": "text", "text": "a.txt"}]},
            {"role": "assistant", "tool_calls": [call], "refusal": None},
        ],
    )
    assert "Be\nbrief." in site.prompt
    assert "a.txt" in site.prompt


def test_half_an_emoji_is_replaced_and_not_refused(site: Site):
    body = rb'{"messages": [{"role": "user", "content": "cut \ud83d, \\ud83d, \ud83d\ude00"}]}'
    assert site.post("/v1/chat/completions", body).status_code == 200
    assert "cut \ufffd, \\ud83d, 😀<" in site.prompt


def test_a_large_conversation_is_answered(site: Site):
    site.engine.info = replace(site.engine.info, context_length=10**6)
    ask(site, messages=[{"role": "user", "content": "x" * 200_000}])
    assert len(site.engine.requests[0].tokens) > 200_000


def test_what_fails_before_the_first_token_is_a_plain_error_even_for_a_stream(site: Site):
    site.engine.script = Refuse(EngineCrashed("The engine died."))
    response = site.post("/v1/chat/completions", {"messages": USER, "stream": True})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_crashed"


def test_what_fails_in_the_middle_of_a_stream_is_an_error_that_the_sdk_raises(site: Site):
    site.engine.script = Say(tokens_of("Hel"), error=EngineCrashed("The engine died."), token_seconds=0.005)
    with site.sdk() as client:
        parts: list[str] = []
        stream = client.chat.completions.create(model="m", messages=USER, stream=True)
        with pytest.raises(APIError, match=r"The engine died\.") as caught:
            parts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert not isinstance(caught.value, BadRequestError)
    assert caught.value.code == "engine_crashed"


def test_an_engine_that_stops_without_an_end_is_an_error():
    async def broken(request: Any):
        async for event in reply("Hello.")(request):
            if event.__class__.__name__ != "Finished":
                yield event

    with running(ScriptedEngine(broken)) as site:
        response = site.post("/v1/chat/completions", {"messages": USER})
    assert response.status_code == 503
    assert "broke off" in response.json()["error"]["message"]


def test_a_reply_that_the_engine_cancels_is_an_error():
    with running(ScriptedEngine(reply("Hello.", reason="cancelled"))) as site:
        response = site.post("/v1/chat/completions", {"messages": USER})
    assert response.status_code == 503


def test_the_sdk_sees_request_ids(site: Site):
    with site.sdk() as client:
        answer = client.chat.completions.create(model="m", messages=USER)
    assert answer._request_id is not None
    assert len(answer._request_id) == 32


def test_the_paths_without_v1_work_as_well(site: Site):
    with httpx2.Client(base_url=site.url, trust_env=False) as client:
        assert client.post("/chat/completions", json={"messages": USER}).status_code == 200


def test_the_end_of_turn_never_shows(site: Site):
    site.engine.script = Say([*tokens_of("Hi"), END])
    assert ask(site)["choices"][0]["message"]["content"] == "Hi"
