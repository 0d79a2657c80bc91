"""How much of an agent's session real servers reuse, as the three rules write it, and with each rule broken alone.

::

    python bench/reuse.py                     a toy with SmolLM2's tokenizer, 40 turns, both servers, both dialects
    python bench/reuse.py MODEL.gguf --turns 40 --context 8192 --kept

`kvstet agent`'s own loop plays a session with a clock, tools that come and go, large outputs and compactions against
kvstet and against llama.cpp's own server (the ``xllamacpp`` package, ``pip install 'kvstet[bench]'``). Every prompt is
computed by the server; its reply is then replaced by the script's, so that all runs say the same. Told is the part of
all prompt tokens, the cold first prompt included, that the server says it had cached: a count, which no model changes,
so a toy will do. ``--kept`` plays no broken rules. The exit status is 1 where it is 95% or less with all rules kept.

Broken are: rule 1, the clock stands in the system prompt; rule 2, tools are sent as they come, in another order each
turn; rule 3, outputs enter whole and old ones are cleared at every step, and a summary is asked for by a prompt of its
own.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kvstet.agent.confirmation import Yes
from kvstet.agent.events import Compacted, Event
from kvstet.agent.loop import Agent
from kvstet.agent.model import Endpoint, HttpModel, saying
from kvstet.agent.toolbox import Toolbox
from kvstet.agent.tools.tool import Plan, Tool
from kvstet.bench.servers import Local
from kvstet.bench.software import Settings, kvstet, wheel
from kvstet.context.conversation import Context
from kvstet.context.writing.budget import Budget
from kvstet.context.writing.compaction import INSTRUCTION, PRUNED
from kvstet.context.writing.payback import LOCAL
from kvstet.demo.model import demo_model_path
from kvstet.dialects.dialect import DialectName
from kvstet.dialects.reply import Delta, UsageNews
from kvstet.dialects.request import Request, Terms
from kvstet.types import Usage

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.toys import toy_path

SYSTEM = "You are a coding agent. You work in one folder with the tools that you have.\n" + "\n".join(
    f"- Rule {number}: look before you change, and keep every change small enough to be read." for number in range(24)
)
WORDS = ["parse", "token", "branch", "span", "cache", "index", "merge", "stock", "order", "price", "state", "reader"]
OUTPUT_LINES = 70
MAX_OUTPUT_CHARACTERS = 600
STEPS = 2
"""Calls in each turn."""
ENOUGH = 0.95


def tool(name: str) -> dict[str, Any]:
    properties = {"path": {"type": "string", "description": "A file of the project."}, "count": {"type": "integer"}}
    parameters = {"type": "object", "properties": properties, "required": ["path"]}
    described = {"name": name, "description": f"{name.capitalize()} what a file of the project holds."}
    return {"type": "function", "function": {**described, "parameters": parameters}}


@dataclass(frozen=True)
class Printing:
    """A tool that looks at nothing."""

    schema: dict[str, Any]
    output: Callable[[], str]
    only_reads = True

    async def plan(self, arguments: str) -> Plan:
        async def run() -> str:
            return self.output()

        return Plan(run)


class Tools:
    """A source of tools: what there is depends on the turn."""

    def __init__(self) -> None:
        self.turn = 0
        self._random = random.Random(7)

    async def tools(self) -> Sequence[Tool]:
        names = ["read", "list", "search", "edit"]
        if self.turn >= 8:
            names.append("lint")
        if self.turn >= 20:
            names += ["profile"]
        if self.turn >= 30:
            names.remove("search")
        return [Printing(tool(name), self._output) for name in names]

    def _output(self) -> str:
        lines = (" ".join(self._random.choices(WORDS, k=6)) for _ in range(OUTPUT_LINES))
        return "\n".join(f"{number:4d}  {line}" for number, line in enumerate(lines, 1))


class ClockInFront(Context):
    """Rule 1 broken."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._now: dict[str, str] = {}

    def note(self, name: str, text: str) -> None:
        self._now[name] = text

    def request(self) -> dict[str, Any]:
        request = super().request()
        now = "\n".join(f"{name}: {text}" for name, text in self._now.items())
        head = {"role": "system", "content": f"{now}\n\n{request['messages'][0]['content']}"}
        return {**request, "messages": [head, *request["messages"][1:]]}


class ToolsAsTheyCome(Context):
    """Rule 2 broken."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._sent: list[Mapping[str, Any]] = []
        self._num_turns = 0

    def set_tools(self, tools: Iterable[Mapping[str, Any]]) -> None:
        self._sent = list(tools)

    def user(self, text: str) -> None:
        super().user(text)
        self._num_turns += 1

    def request(self) -> dict[str, Any]:
        place = self._num_turns % len(self._sent) if self._sent else 0
        return {**super().request(), "tools": [*self._sent[place:], *self._sent[:place]]}


class CutLater(Context):
    """Rule 3 broken."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "max_output_characters": 10**9})

    def request(self) -> dict[str, Any]:
        request = super().request()
        outputs = [index for index, message in enumerate(request["messages"]) if message["role"] == "tool"]
        for index in outputs[:-1]:
            request["messages"][index] = {**request["messages"][index], "content": PRUNED}
        return request

    def summary_request(self) -> dict[str, Any]:
        said = "\n\n".join(
            f"[{message['role']}]: {message['content']}" for message in super().request()["messages"][1:]
        )
        head = {"role": "system", "content": "You summarise conversations."}
        return {"messages": [head, {"role": "user", "content": f"{said[:12_000]}\n\n{INSTRUCTION}"}]}


VARIANTS: Mapping[str, type[Context]] = {
    "all rules kept": Context,
    "1 off: clock in the system prompt": ClockInFront,
    "2 off: tools as they come": ToolsAsTheyCome,
    "3 off: outputs cleared later, summary apart": CutLater,
}


class Scripted:
    """A real model computes each prompt; what it would say is replaced by the script."""

    def __init__(self, model: HttpModel) -> None:
        self._model = model
        self._num_asked = 0
        self.usages: list[Usage] = []

    async def complete(self, request: Request) -> AsyncGenerator[Delta, None]:
        usage = Usage()
        terms = replace(request.terms, max_output_tokens=1, temperature=0.0)
        async for delta in self._model.complete(replace(request, terms=terms)):
            if isinstance(delta, UsageNews):
                usage = delta.usage
        self.usages.append(usage)
        for delta in self._reply(request, usage):
            yield delta

    def _reply(self, request: Request, usage: Usage) -> Sequence[Delta]:
        if INSTRUCTION in str(request.messages[-1]["content"]):
            return saying("The user works on the stock index. " * 12, usage=usage)
        self._num_asked += 1
        number = self._num_asked
        if number % (STEPS + 1) == 0:
            return saying(f"Done with part {number}: the index is merged, and its state is kept.", usage=usage)
        return saying(
            f"I look at part {number}.", (f"call_{number}", "read", f'{{"path": "part{number}.py"}}'), usage=usage
        )


@dataclass(frozen=True)
class Result:
    reuse: float
    num_tokens: int
    num_computed: int
    num_requests: int
    num_compactions: int


async def play(url: str, dialect: DialectName, kind: type[Context], turns: int, context_length: int) -> Result:
    path = "/v1/messages" if dialect == "messages" else "/v1/chat/completions"
    model = HttpModel(Endpoint(title="server", url=url + path, dialect=dialect))
    scripted, tools, compactions = Scripted(model), Tools(), 0
    toolbox = Toolbox([], Yes(), source=tools)

    def watch(event: Event) -> None:
        nonlocal compactions
        compactions += isinstance(event, Compacted)

    async def surroundings() -> Mapping[str, str]:
        return {
            "time": f"{8 + tools.turn // 6:02d}:{tools.turn * 10 % 60:02d}",
            "git status": f" M part{tools.turn // 5}.py",
        }

    context = kind(
        # Each session begins otherwise, so that none finds what another one left.
        f"Session of {dialect}, {kind.__name__}.\n{SYSTEM}",
        await toolbox.refresh(),
        budget=Budget(context_length=context_length, num_reserved_tokens=context_length // 16, keep_share=0.1),
        takes_late_tools=True,
        max_output_characters=MAX_OUTPUT_CHARACTERS,
    )
    agent = Agent(
        scripted,
        context,
        toolbox,
        model_name="served",
        terms=Terms(is_streamed=True, includes_usage=True),
        rates=LOCAL,
        surroundings=surroundings,
        watch=watch,
    )
    try:
        for tools.turn in range(turns):
            await agent.run(f"Now work on part {tools.turn} of the index, and say what its state is.")
    finally:
        await model.close()
    read = sum(usage.num_cache_read_tokens or 0 for usage in scripted.usages)
    whole = sum(usage.num_input_tokens or 0 for usage in scripted.usages)
    return Result(read / whole, whole, whole - read, len(scripted.usages), compactions)


def servers(model: Path, context_length: int, folder: Path) -> Iterable[Local]:
    settings = Settings(model, folder, context_length, parallel=1)
    for software in (kvstet("--no-cache-disk", "--anticipate", "off"), wheel()):
        yield Local(software, settings)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", nargs="?", type=Path, help="a GGUF file; a toy if not given")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--context", type=int, default=12_288)
    parser.add_argument("--kept", action="store_true", help="only with all rules kept")
    arguments = parser.parse_args()
    model = arguments.model or toy_path("llama-dense", context_length=arguments.context, vocabulary=demo_model_path())
    variants = {name: kind for name, kind in VARIANTS.items() if kind is Context or not arguments.kept}
    table = Table(title=f"{arguments.turns} turns of kvstet agent: prompt tokens that the server had cached")
    for name in ("server", "dialect", "rules", "reused", "computed tokens", "prompt tokens", "requests", "compactions"):
        table.add_column(name, justify="left" if name in ("server", "dialect", "rules") else "right")
    worst = 1.0
    console = Console(width=150)
    with tempfile.TemporaryDirectory(prefix="kvstet-reuse-") as folder:
        for server in servers(model, arguments.context, Path(folder)):
            try:
                asyncio.run(server.start())
                for dialect in ("chat", "messages"):
                    for name, kind in variants.items():
                        if kind is not Context and dialect != "chat":
                            continue  # Broken in one dialect, a rule is broken in the other.
                        result = asyncio.run(play(server.url, dialect, kind, arguments.turns, arguments.context))
                        if kind is Context:
                            worst = min(worst, result.reuse)
                        numbers = (result.num_computed, result.num_tokens, result.num_requests, result.num_compactions)
                        table.add_row(
                            server.name, dialect, name, f"{result.reuse:.1%}", *(f"{number:,}" for number in numbers)
                        )
                        console.print(f"{server.name} {dialect} {name}: {result.reuse:.1%}", highlight=False)
            finally:
                server.kill()
    console.print(table)
    return int(worst <= ENOUGH)


if __name__ == "__main__":
    sys.exit(main())
