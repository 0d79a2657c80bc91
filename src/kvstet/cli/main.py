"""The commands, and what is the same for all of them."""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

import typer
from rich.markup import escape

from kvstet import __version__
from kvstet.cli.agent import AgentCommand, agent
from kvstet.cli.bench import bench
from kvstet.cli.cache import app as cache
from kvstet.cli.console import log_handler, stderr_console
from kvstet.cli.demo import demo
from kvstet.cli.explain import explain
from kvstet.cli.gateway import gateway
from kvstet.cli.launch import launch
from kvstet.cli.lint import lint_file
from kvstet.cli.record import record
from kvstet.cli.replay import replay
from kvstet.cli.serve import serve
from kvstet.cli.trace import app as trace
from kvstet.cli.usage import usage
from kvstet.cli.verify import verify
from kvstet.errors import KvstetError

app = typer.Typer(
    name="kvstet",
    help="An inference server for coding agents, in which an edit costs only the tokens it changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(demo)
app.command()(gateway)
app.command()(launch)
app.command()(verify)
app.command()(explain)
app.command()(record)
app.command()(replay)
app.command()(usage)
app.command()(bench)
app.command("lint")(lint_file)
app.command(cls=AgentCommand)(agent)
app.add_typer(cache)
app.add_typer(trace)

errors = stderr_console()


def show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"kvstet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    verbose: bool = typer.Option(False, "-v", "--verbose", help="Log what libllama and the server do."),
    version: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Print the version."),
) -> None:
    """Options before the command."""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(message)s", handlers=[log_handler(errors)], force=True)
    # A file that libllama cannot load is one sentence, in which its last word on it stands.
    logging.getLogger("kvstet.llama").setLevel(logging.NOTSET if verbose else logging.CRITICAL)


def main() -> None:
    """Run; errors that are the user's to mend are one sentence, exit status 1."""
    try:
        app()
    except KvstetError as error:
        complain(str(error))
    except OSError as error:
        # An address in use, a folder that cannot be read: the system's words say it best.
        complain(error.strerror or str(error))


def complain(sentence: str) -> NoReturn:
    """End with what is wrong."""
    errors.print(f"[red]kvstet:[/red] {escape(sentence)}", highlight=False, soft_wrap=True)
    sys.exit(1)
