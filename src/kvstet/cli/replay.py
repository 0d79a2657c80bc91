"""``kvstet replay``: a recorded session, sent again to servers, or set against the cache rules of hosted models."""

from __future__ import annotations

import math
import os
import re
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

from kvstet import __version__
from kvstet.cli.listing import count_text, stdout_console
from kvstet.cli.replay_table import HEAD, comparison, row, totals
from kvstet.context.arranging.optimiser import Optimiser
from kvstet.errors import InvalidRequest
from kvstet.replay.foretelling import Target, foretold, target_of
from kvstet.replay.playing import Player
from kvstet.replay.results import Asked, Replayed, Run
from kvstet.replay.server import client_of, found
from kvstet.replay.session import Pace, Session, read_session

DEFAULT_MAX_GAP_SECONDS = 60.0
INTERRUPTED = 130
"""The exit status that shells give Ctrl-C."""

_ADDRESS = re.compile(r"[a-z+]+://|[^/]*:\d+(/|$)")


def replay(
    trace: Annotated[Path, typer.Argument(help="A recorded session (JSON lines, also as .xz).")],
    *,
    against: Annotated[
        list[str],
        typer.Option("--against", help="URL of a server, or PROVIDER[/MODEL] for its documented rule. Repeatable."),
    ],
    gap: Annotated[
        str, typer.Option("--gap", help="Pause before each request: recorded, none, or seconds.")
    ] = "recorded",
    max_gap: Annotated[
        float, typer.Option("--max-gap", min=0, help="No recorded pause is longer, seconds.")
    ] = DEFAULT_MAX_GAP_SECONDS,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Send this many requests only.")] = None,
    repeat: Annotated[int, typer.Option("--repeat", min=1, max=1000, help="Replay so often, in turn.")] = 1,
    model: Annotated[str | None, typer.Option("--model", help="Ask servers for it; else their first.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", help="Variable of the environment that holds the servers' key.")
    ] = None,
    optimise: Annotated[
        bool, typer.Option("--optimise", help="For providers: also as `kvstet gateway --optimise` arranges it.")
    ] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all numbers there.")] = None,
) -> None:
    """Replay a recorded session against servers: what each request computes, beside the least that it could have."""
    session = read_session(trace, max_turns=limit)
    pace = pace_of(gap, max_gap)
    console = stdout_console()
    with ExitStack() as stack:
        replaying = Replaying(session, pace, console, optimise=optimise)
        replaying.prepare(against, model, _key(api_key_env), stack)
        is_whole = replaying.run(repeat)
    runs = replaying.runs
    console.print(comparison(runs))
    for reason, count in session.skipped.items():
        console.print(f"[dim]{count_text(count, 'request')} not sent: {escape(reason)}.[/dim]", soft_wrap=True)
    if json_path is not None:
        told = Replayed(by=f"kvstet {__version__}", trace=trace.name, gap=gap, skipped=dict(session.skipped), runs=runs)
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    if not is_whole:
        sys.exit(INTERRUPTED)
    if all(run.failure or all(asked.error for asked in run.asked) for run in runs):
        raise typer.Exit(1)


def pace_of(gap: str, max_seconds: float = math.inf) -> Pace:
    """InvalidRequest: it is no number of seconds."""
    if gap == "recorded":
        return Pace(max_seconds=max_seconds)
    try:
        seconds = 0.0 if gap == "none" else float(gap)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InvalidRequest(f"--gap is recorded, none, or a number of seconds, not {gap!r}.")
    return Pace(seconds)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise InvalidRequest(f"The variable {variable} of the environment holds no key.")
    return key


@dataclass(slots=True)
class Replaying:
    """The runs of one session, and how they are told while they go on."""

    session: Session
    pace: Pace
    console: Console
    optimise: bool
    sides: list[Player | Target] = field(default_factory=list["Player | Target"])
    runs: list[Run] = field(default_factory=list[Run])

    def prepare(self, names: list[str], model: str | None, api_key: str | None, stack: ExitStack) -> None:
        """Finds all servers before any is asked. ServerGone, UnknownProvider: one of them is not there."""
        for name in names:
            if not _ADDRESS.match(name):
                self.sides.append(target_of(name))
                continue
            url = name if "://" in name else f"http://{name}"
            client = stack.enter_context(client_of(url, api_key))
            self.sides.append(Player(client, found(client, model), self._tell))

    def run(self, num_repetitions: int) -> bool:
        """All of them in turn, as often; whether they came to their end, and nobody has stopped them."""
        try:
            for repetition in range(num_repetitions):
                for side in self.sides:
                    self._run(side, repetition)
        except KeyboardInterrupt:
            self.console.print("[yellow]Stopped.[/yellow]")
            return False
        return True

    def _run(self, side: Player | Target, repetition: int) -> None:
        if isinstance(side, Player):
            run = self._begin(Run(server=side.server.name, repetition=repetition))
            try:
                side.play(self.session, self.pace, run)
            finally:
                self._end(run)
            return
        optimisers = [None, Optimiser(side.provider)] if self.optimise else [None]
        for optimiser in optimisers:
            run = foretold(self.session, side, self.pace, arranged_by=optimiser)
            run.repetition = repetition
            self._begin(run)
            for asked in run.asked:
                self._tell(asked)
            self._end(run)

    def _begin(self, run: Run) -> Run:
        self.runs.append(run)
        times = f", run {run.repetition + 1}" if run.repetition else ""
        self.console.print(f"[bold]{escape(run.server)}[/bold]{times}", soft_wrap=True)
        self.console.print(HEAD, style="dim", soft_wrap=True)
        return run

    def _tell(self, asked: Asked) -> None:
        for line in row(asked):
            self.console.print(line, soft_wrap=True)

    def _end(self, run: Run) -> None:
        for line in totals(run):
            self.console.print(line, soft_wrap=True)
