"""`kvstet serve` as users start it: a real process, the real SmolLM2, the official SDK."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import openai
import pytest

pytestmark = pytest.mark.timeout(180)

SYSTEM = {"role": "system", "content": "You are a careful assistant. " * 12}
QUESTION = {"role": "user", "content": "Name one colour."}


class Server:
    def __init__(self, *options: str) -> None:
        command = [
            sys.executable,
            "-m",
            "kvstet",
            "serve",
            "--port",
            "0",
            "-c",
            "1024",
            "-np",
            "4",
            "-t",
            "1",
            *options,
        ]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
        )
        self.startup = ""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.startup += line
            if line.startswith("cache"):
                break
        self.url = re.search(r"http://[\d.:]+", self.startup)[0]  # type: ignore[index]
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def chat(self, *messages: dict[str, str], **options: object):
        options = {"max_tokens": 6, "temperature": 0, **options}
        return self.client.chat.completions.create(model="any", messages=[*messages], **options)  # type: ignore[call-overload]

    def engine_pid(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[-1])

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return float(re.search(rf"^{name} ([\d.e+]+)$", text, re.MULTILINE)[1])  # type: ignore[index]

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(30)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.client.close()
        return code


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server("--alias", "my-coder")
    yield server
    server.process.kill()
    server.process.wait()
    assert server.process.stderr is not None
    server.process.stderr.close()
    server.client.close()


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.05)


def test_startup_says_address_model_memory_and_cache(server: Server):
    for word in (
        "address",
        "model",
        "Smollm2",
        "1,024 tokens a request",
        "attention: a prompt resumes at any token",
        "MiB in RAM",
    ):
        assert word in server.startup


def test_an_appended_turn_reuses_the_first(server: Server):
    first = server.chat(SYSTEM, QUESTION).model_dump()
    reply = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    second = server.chat(SYSTEM, QUESTION, reply, {"role": "user", "content": "And another?"}).model_dump()
    own, usage = second["kvstet"], second["usage"]
    assert own["reused"] + own["loaded"] + own["shifted"] + own["computed"] == usage["prompt_tokens"]
    assert (
        usage["prompt_tokens_details"]["cached_tokens"]
        == second["timings"]["cache_n"]
        >= first["usage"]["prompt_tokens"]
    )
    assert "messages 0-1 were reused" in own["verdict"]


def test_streaming_and_not_give_the_same_greedy_reply(server: Server):
    whole = server.chat(SYSTEM, QUESTION).choices[0].message.content
    chunks = list(server.chat(SYSTEM, QUESTION, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens == 6


async def test_the_async_client_streams(server: Server):
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client:
        stream = await client.chat.completions.create(
            model="any",
            messages=[QUESTION],
            max_tokens=4,
            stream=True,  # type: ignore[list-item]
        )
        assert len([chunk async for chunk in stream]) > 2


def test_a_schema_shapes_the_reply(server: Server):
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    reply = server.chat(
        QUESTION, max_tokens=20, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    )
    assert re.fullmatch(r'\{\s*"ok"\s*:\s*(true|false)\s*\}\s*', reply.choices[0].message.content)


def test_choices_share_the_prompt_and_seeds_repeat(server: Server):
    options = {"n": 2, "temperature": 1.0, "seed": 7}
    replies = [[c.message.content for c in server.chat(SYSTEM, QUESTION, **options).choices] for _ in range(2)]
    assert replies[0] == replies[1]


def test_bad_requests_are_clear_and_the_server_serves_on(server: Server):
    url = f"{server.url}/v1/chat/completions"
    answers = [
        httpx.post(url, content=os.urandom(1 << 20)),
        httpx.post(url, content=b'{"messages": ['),
        httpx.post(url, json={"messages": [{"role": "user", "content": "word " * 3000}]}),
        httpx.post(url, json={"messages": [QUESTION], "grammar": "root ::= ("}),
        httpx.post(url, json={"messages": [QUESTION], "max_tokens": "many"}),
    ]
    assert [answer.status_code for answer in answers] == [400] * 5
    assert answers[2].json()["error"]["code"] == "context_length_exceeded"
    assert "1024 tokens" in answers[2].json()["error"]["message"]
    assert server.chat(QUESTION).choices[0].message.content is not None


def test_a_client_that_hangs_up_frees_its_tokens(server: Server):
    stream = server.chat(QUESTION, max_tokens=900, extra_body={"ignore_eos": True}, stream=True)
    next(stream)
    until(lambda: server.metric("kvstet_running_requests") == 1)
    stream.close()
    until(lambda: server.metric("kvstet_running_requests") == 0, 5)


def test_a_killed_engine_comes_back_and_the_stream_says_so(server: Server):
    stream = server.chat(QUESTION, max_tokens=900, extra_body={"ignore_eos": True}, stream=True)
    next(stream)
    next(stream)
    os.kill(server.engine_pid(), signal.SIGKILL)
    with pytest.raises(openai.APIError, match="crashed"):
        list(stream)
    assert server.chat(QUESTION).choices[0].message.content is not None


def test_models_tokens_and_templates_can_be_asked_for(server: Server):
    assert "my-coder" in [model.id for model in server.client.models.list()]
    tokens = httpx.post(f"{server.url}/tokenize", json={"content": "héllo <|im_end|>"}).json()["tokens"]
    assert httpx.post(f"{server.url}/detokenize", json={"tokens": tokens}).json()["content"] == "héllo <|im_end|>"
    prompt = httpx.post(f"{server.url}/apply-template", json={"messages": [QUESTION]}).json()["prompt"]
    assert prompt.endswith("<|im_start|>assistant\n")


def test_interrupt_ends_the_server_and_its_engine():
    server = Server()
    engine = server.engine_pid()
    assert server.stop() == 0
    until(lambda: not Path(f"/proc/{engine}").exists(), 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no.such"), (b"", "GGUF"), (b"GGUF" + b"\0" * 100, "cannot load"), (b"text", "GGUF")],
)
def test_a_file_that_is_no_model_is_one_clear_sentence(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "no.such.gguf"
    if content is not None:
        path.write_bytes(content)
    result = subprocess.run(
        [sys.executable, "-m", "kvstet", "serve", path],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "400"},
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
