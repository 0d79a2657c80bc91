"""``kvstet demo``: a recorded agent session on the bundled model, with the cache and without."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kvstet.api import create_app
from kvstet.api import server as http
from kvstet.api.models import OneModel
from kvstet.cli.stack import LoadedModel
from kvstet.cli.startup import show_startup
from kvstet.cli.watch import loading_bar
from kvstet.config import ModelOptions, ServedOptions, ServerOptions
from kvstet.demo.model import demo_model_path
from kvstet.demo.replay import Answer, Pair, Replay, drift
from kvstet.demo.session import RecordedRequest, load_session
from kvstet.demo.table import live_line, show

NUM_SHORT_REQUESTS = 6

NUM_NOISE_REQUESTS = 2
"""Requests by which the model's noise is measured; each takes as long as two cold runs of it."""

console = Console()


def demo(
    short: Annotated[bool, typer.Option("--short", help=f"The first {NUM_SHORT_REQUESTS} requests only.")] = False,
) -> None:
    """Replay a recorded coding session on the bundled model, with the cache and without, and compare."""
    asyncio.run(run(NUM_SHORT_REQUESTS if short else None))


async def run(num_requests: int | None) -> None:
    """Start a server, replay, and print the table."""
    session = load_session()
    requests = session.requests[:num_requests]
    options, server = ServedOptions(ModelOptions(demo_model_path())), ServerOptions(port=0)
    with loading_bar(console, options.model.path.name) as on_progress:
        loaded = await LoadedModel.load(options, server, on_progress)
    models = OneModel(loaded.served)
    listener = http.listen(server)
    serving = asyncio.create_task(http.Server(create_app(models, server), models).serve(sockets=[listener]))
    try:
        show_startup(console, http.url_of(listener), [(options, models.status(None))])
        console.print(
            f"\nA session of {session.provenance.client}, {len(requests)} requests, replayed:", highlight=False
        )
        await compare(Replay(http.url_of(listener)), requests)
    finally:
        await models.close()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        listener.close()
        await loaded.close()


async def compare(replay: Replay, requests: tuple[RecordedRequest, ...]) -> None:
    """Both passes, the table, and where replies differ, the model's own noise beside it."""
    warm: list[Answer] = []
    for request in requests:
        with console.status(f"{request.label} ..."):
            warm.append(await replay.warm(request))
        console.print(live_line(request, warm[-1]), highlight=False, overflow="ellipsis", no_wrap=True)
    pairs: list[Pair] = []
    columns = (TextColumn("the same without the cache"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        for request, answer in progress.track(list(zip(requests, warm, strict=True))):
            pairs.append(Pair(request, answer, await replay.cold(request)))
    show(console, pairs)
    await show_noise(replay, [pair for pair in pairs if not pair.agrees])


async def show_noise(replay: Replay, differing: list[Pair]) -> None:
    """How far replies differ, and beside it by how much cold runs do: the model's noise.

    The shortest of the requests are computed twice at once, which makes batches of another shape.
    """
    for pair in differing:
        console.print(
            f"  {pair.request.label}: the replies differ; log-probabilities by {pair.drift:.3f}", highlight=False
        )
    noises: list[float] = []
    for pair in sorted(differing, key=lambda pair: pair.cold.num_prompt_tokens)[:NUM_NOISE_REQUESTS]:
        with console.status(f"{pair.request.label}, cold, in other batches ..."):
            first, second = await asyncio.gather(replay.cold(pair.request), replay.cold(pair.request))
        noises += [drift(first, second), drift(pair.cold, first), drift(pair.cold, second)]
    if noises:
        console.print(
            f"  The model's noise floor: cold runs of the same requests in other batches differ by {max(noises):.3f}",
            highlight=False,
        )
