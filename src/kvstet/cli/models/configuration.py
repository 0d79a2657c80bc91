"""``--config FILE``: what the command line says, in TOML; and which of the two is right where both say it.

::

    [server]
    port = 8000
    cache-ram = 4096

    [models.coder]
    path = "coder.gguf"
    aliases = ["gpt-4o"]
    ctx-size = 65536

Keys are the options' names. Values are read by the very parser of the command line, so they are as good or bad there
as here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import typer
from typer.exceptions import TyperException

from kvstet.errors import KvstetError

MODEL_KEYS = frozenset(
    {"alias", "lora", "chat_template", "parallel", "cache_ram", "audit", "queue", "prefill_chunk", "deadline"}
    | {"watchdog", "ctx_size", "live_cells", "batch_size", "ubatch_size", "threads", "threads_batch", "n_gpu_layers"}
    | {"flash_attn", "cache_type_k", "cache_type_v", "rope_scaling", "rope_freq_base", "rope_freq_scale"}
    | {"yarn_orig_ctx", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "repack", "mmap"}
    | {"mlock", "swa_full", "anticipate", "anticipate_budget"}
)
"""Options that each model can have for itself."""

NOT_IN_SERVER = frozenset({"model", "models", "config", "alias", "lora"})
"""They say which models there are, or are of one model alone."""

Values = dict[str, Any]
"""Name of an option, as Python has it -> its value."""
Table = dict[str, Any]

_SOURCES_OF_USERS = ("COMMANDLINE", "ENVIRONMENT")


class BadModels(KvstetError):
    """The models that are to be served cannot be: a file of options, a name twice, or an option for one of several."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """What the file says."""

    server: Values = field(default_factory=Values)
    paths: dict[str, str] = field(default_factory=dict[str, str])
    """Each model's file, or its name on a hub."""
    models: dict[str, Values] = field(default_factory=dict[str, Values])
    """Each model's own options."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that was said about options: on the command line, for one model in the file, for all there, by default."""

    given: Values
    """Of the command line and the environment."""
    file: Configuration
    defaults: Values

    @classmethod
    def gather(cls, context: typer.Context, values: Values, path: Path | None) -> Settings:
        """``values``: the command's arguments. Raises BadModels."""
        given = {name: value for name, value in values.items() if _is_given(context, name)}
        file = Configuration() if path is None else read(path, context.command.make_context)
        return cls(given, file, values)

    def of_server(self) -> Values:
        return {**self.defaults, **self.file.server, **self.given}

    def of_model(self, name: str) -> Values:
        return {**self.defaults, **self.file.server, **self.file.models.get(name, {}), **self.given}


MakeContext = Callable[[str, list[str]], Any]
"""The command's parser."""


def read(path: Path, make_context: MakeContext) -> Configuration:
    """The file. Raises BadModels, which says what is wrong and where."""
    tables = _tables(path)
    unknown = sorted(set(tables) - {"server", "models"})
    if unknown:
        raise BadModels(f"{path} has a table or key '{unknown[0]}'; known are [server] and [models.NAME].")
    reader = _Reader(path, make_context)
    server, models = tables.get("server", {}), tables.get("models", {})
    paths: dict[str, str] = {}
    own: dict[str, Values] = {}
    for name, table in reader.table("models", models).items():
        place = f"models.{name}"
        fields = {_key(key): value for key, value in reader.table(place, table).items()}
        paths[name] = reader.path(place, fields.pop("path", None))
        if "aliases" in fields:
            fields["alias"] = fields.pop("aliases")
        own[name] = reader.values(place, fields, MODEL_KEYS.__contains__)
    fields = {_key(key): value for key, value in reader.table("server", server).items()}
    return Configuration(reader.values("server", fields, lambda key: key not in NOT_IN_SERVER), paths, own)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads tables of one file."""

    file: Path
    make_context: MakeContext

    def table(self, place: str, value: object) -> Table:
        if not isinstance(value, dict):
            raise BadModels(f"{self.file}: '{place}' is to be a table.")
        return cast("Table", value)

    def path(self, place: str, value: object) -> str:
        if not isinstance(value, str) or not value:
            raise BadModels(f'{self.file}: [{place}] needs path = "FILE.gguf", or the model\'s name on a hub.')
        return value if value.startswith("hf:") else self.beside(value)

    def beside(self, text: str) -> str:
        """A file's name; relative ones count from the file of options."""
        return str(self.file.parent / Path(text).expanduser())

    def values(self, place: str, fields: Table, is_known: Callable[[str], bool]) -> Values:
        options = {option.name: option for option in self.make_context("serve", []).command.params}
        found: Values = {}
        for key, value in fields.items():
            option = options.get(key)
            if option is None or not is_known(key):
                raise BadModels(f"{self.file}: [{place}] knows no '{key}'.")
            try:
                arguments = _arguments(option, value)
                found[key] = self.make_context("serve", arguments).params[key] if arguments else False
            except (TyperException, ValueError) as error:
                reason = getattr(error, "message", None) or str(error)
                raise BadModels(f"{self.file}: [{place}], {key}: {reason}") from error
        for key in ("api_key_file", "cache_dir"):
            if key in found:
                found[key] = Path(self.beside(str(found[key])))
        if "lora" in found:
            found["lora"] = [self.beside(text) for text in found["lora"]]
        template = found.get("chat_template")
        if template and "{" not in template and Path(self.beside(template)).is_file():
            found["chat_template"] = self.beside(template)
        return found


def _tables(path: Path) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadModels(f"Cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise BadModels(f"{path} is not TOML: {error}") from error


def _key(key: str) -> str:
    return key.replace("-", "_")


def _arguments(option: Any, value: object) -> list[str]:
    """The value as the command line would have it; nothing for a switch that is off. Raises ValueError."""
    name: str = max(option.opts, key=len)
    if getattr(option, "is_flag", False):
        if not isinstance(value, bool):
            raise ValueError("it is true or false.")
        return [name] if value else [*option.secondary_opts[:1]]
    if isinstance(value, bool | dict):
        raise ValueError("that is no value for it.")
    if not isinstance(value, list):
        return [f"{name}={value}"]
    if not option.multiple:
        raise ValueError("it has one value.")
    return [f"{name}={one}" for one in cast("Sequence[object]", value)]


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name in _SOURCES_OF_USERS


def values_of(arguments: Mapping[str, Any]) -> Values:
    """A command's arguments, without its context."""
    return {name: value for name, value in arguments.items() if name != "context"}
