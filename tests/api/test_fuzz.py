"""Damaged requests in all dialects: the answer is a reply, or an error in the envelope of the dialect, and nothing is
left running."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random

import httpx2
import pytest
from starlette.types import ASGIApp
from tests.api.anthropic_harness import calling, thinking
from tests.api.harness import END
from tests.api.mutations import mutant
from tests.api.samples import HANDWRITTEN, recorded

from kvstet.api import create_app
from kvstet.api.envelopes import envelope_for
from kvstet.api.models import OneModel
from kvstet.api.ports import Served
from kvstet.chat.fake import ByteTokenizer
from kvstet.chat.ledger import Ledger
from kvstet.chat.renderer import Renderer
from kvstet.config import ServerOptions
from kvstet.engine.fake_client import TINY_MODEL, Say, ScriptedEngine
from kvstet.llama.schema import schema_grammar, schema_rules

FAMILIES = Path(__file__).parents[1] / "chat" / "families"
TEMPLATES = ("qwen3", "gpt-oss", "mistral-small-3.2", "deepseek-v3.1", "qwen3-coder", "gemma-3")
HANG_SECONDS = 20.0
FEW, MANY = 300, 20_000

REPLIES = (
    "Hello.",
    "",
    "<think>\nHm.\n</think>\n\nHello.",
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    '<tool_call>\n{"name": "weather", "arguments": {"city": "\\ud800", "n": 1e999}}\n</tool_call>',
    '<tool_call>\n{"name": "weather", "arguments": {"ci',
    "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
    '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}',
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello.",
    '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}',
    thinking("no") + calling("x", "{"),
    b"\xff half of a woman: \xf0\x9f",
)


_FRAME = re.compile(r'File "(.+)", line (\d+)')


class Alarm(logging.Handler):
    """Collects what the server calls unforeseen; raises nothing."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Bench:
    """A server in this process for each of some templates; sends damaged requests and judges the answers."""

    def __init__(self) -> None:
        self.samples = [*recorded(), *HANDWRITTEN, *HANDWRITTEN]
        self.statuses: Counter[int] = Counter()
        self.engines: list[ScriptedEngine] = []
        self.apps: list[ASGIApp] = []
        for name in TEMPLATES:
            # Recorded requests have tools of ten thousands of tokens.
            engine = ScriptedEngine(info=replace(TINY_MODEL, context_length=1_000_000))
            renderer = Renderer((FAMILIES / f"{name}.jinja").read_text(), TOKENIZER, ledger=Ledger())
            served = Served(engine, renderer, TOKENIZER, schema_grammar, schema_rules)
            self.engines.append(engine)
            self.apps.append(create_app(OneModel(served), ServerOptions()))

    async def run(self, numbers: Sequence[int]) -> list[str]:
        """What is wrong with the answers to the damaged requests of these numbers."""
        alarm = Alarm()
        logger = logging.getLogger("kvstet.api")
        logger.addHandler(alarm)
        try:
            faults = [fault for number in numbers for fault in await self._try(number, alarm)]
        finally:
            logger.removeHandler(alarm)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        return [*faults, *(f"a task is left: {task!r}" for task in left)]

    async def _try(self, number: int, alarm: Alarm) -> list[str]:
        path, body, random = self.request(number)
        which = random.randrange(len(self.apps))
        engine = self.engines[which]
        engine.requests.clear()
        engine.script = Say([*_bytes(random.choice(REPLIES)), END][: random.choice((3, 1000, 1000))])
        alarm.records.clear()
        transport = httpx2.ASGITransport(self.apps[which])
        faults: list[str] = []
        try:
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
                asking = client.post(path, content=body, headers={"content-type": "application/json"})
                response = await asyncio.wait_for(asking, HANG_SECONDS)
        except Exception as error:
            faults.append(f"no answer: {error!r}")
        else:
            self.statuses[response.status_code] += 1
            faults += map(_where, alarm.records) if alarm.records else judge(path, response)
        if engine.stats().num_running:
            faults.append("a generator is left open")
        return [f"{number} at {path} with {TEMPLATES[which]}: {fault}" for fault in faults]

    def request(self, number: int) -> tuple[str, bytes, Random]:
        """Path and body of a damaged request; the same for a number, whatever came before."""
        random = Random(number)
        sample = random.choice(self.samples)
        body = mutant(sample, random)
        # Some bodies go to another dialect.
        path = random.choice(self.samples).path if random.random() < 0.03 else sample.path
        return path, body, random


TOKENIZER = ByteTokenizer()


@cache
def bench() -> Bench:
    return Bench()


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def judge(path: str, response: httpx2.Response) -> list[str]:
    """What is wrong with an answer's form."""
    status, kind = response.status_code, response.headers["content-type"]
    expects_501 = path == "/api/embed"
    if status >= 500 and not (status == 501 and expects_501):
        return [f"status {status}: {response.text[:300]}"]
    try:
        events = _events(kind, response.content)
    except ValueError as error:
        return [f"status {status}, an answer that cannot be read ({error}): {response.text[:300]}"]
    if status >= 400 and not all(_is_error(path, event) for event in events):
        return [f"status {status}, not the envelope of this dialect: {response.text[:300]}"]
    broken = [event for event in events if status == 200 and _is_error(path, event)]
    return [f"an error within the stream: {event}" for event in broken]


def _events(kind: str, content: bytes) -> list[object]:
    """All that an answer holds. ValueError where it is no JSON, or no stream of it."""
    text = content.decode()
    if kind.startswith("text/event-stream"):
        lines = [line for line in text.split("\n") if line and not line.startswith((":", "event: "))]
        if not all(line.startswith("data: ") for line in lines):
            raise ValueError("a line that is neither event nor data")
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]
    if kind == "application/x-ndjson":
        return [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    return [json.loads(text)]


def _is_error(path: str, event: object) -> bool:
    match envelope_for(path).__name__, event:
        case "ollama_envelope", {"error": str()}:
            return True
        case "anthropic_envelope", {"type": "error", "error": {"type": str(), "message": str()}}:
            return True
        case "openai_envelope", {"error": {"message": str(), "type": str(), "param": _, "code": str()}}:
            return True
        case "openai_envelope", {"type": "error" | "response.failed"}:
            return True
        case _:
            return False


def _where(record: logging.LogRecord) -> str:
    """The unforeseen error, and the last places in our own code that it went through."""
    head, _, frames = record.getMessage().partition("\n")
    places = [f"{Path(file).name}:{line}" for file, line in _FRAME.findall(frames) if "kvstet" in file]
    return f"{head.rpartition(' failed: ')[2]} at {' > '.join(places[-3:])}"


async def test_samples_are_served_as_they_stand():
    engine, app = bench().engines[0], bench().apps[0]
    engine.script = Say([*b"Hello.", END])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
        for sample in bench().samples:
            response = await client.post(sample.path, json=sample.body)
            assert response.status_code == (501 if sample.path == "/api/embed" else 200), (sample, response.text)
            assert judge(sample.path, response) == []


async def test_damaged_requests_are_answered_or_refused():
    faults = await bench().run(range(FEW))
    assert not faults, "\n".join(faults[:20])


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_twenty_thousand_damaged_requests_are_answered_or_refused():
    bench().statuses.clear()
    faults = await bench().run(range(FEW, FEW + MANY))
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:50])
    # Most of the damage must go deeper than to where bodies are read.
    assert bench().statuses[200] > MANY / 4, bench().statuses
    assert bench().statuses[400] > MANY / 4, bench().statuses


def test_what_the_fuzzing_looks_for_is_found():
    """The judge itself, on answers that are wrong."""

    def answer(status: int, content: bytes, kind: str = "application/json") -> httpx2.Response:
        return httpx2.Response(status, content=content, headers={"content-type": kind})

    wrong = {
        "/v1/messages": (answer(400, b'{"error": "no"}'), answer(500, b"{}"), answer(200, b"{")),
        "/api/chat": (answer(400, b'{"error": {"message": "no"}}'), answer(200, b"{}\n\n", "application/x-ndjson")),
        "/v1/responses": (answer(200, b'data: {"type": "error"}\n\n', "text/event-stream"),),
        "/v1/completions": (answer(400, b"null"), answer(200, b"event: x\nid: 3\n\n", "text/event-stream")),
    }
    for path, responses in wrong.items():
        for response in responses:
            assert judge(path, response), (path, response.text)
