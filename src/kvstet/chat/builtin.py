"""The templates that ship with kvstet, and the choice between them, a user's own and the model's."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from jinja2 import nodes

from kvstet.chat.template import parse
from kvstet.errors import InvalidRequest

BUILTIN_TEMPLATES = ("chatml", "chatml-tools", "gemma", "llama3", "mistral")
"""Names for ``--chat-template``."""

FALLBACK = "chatml-tools"
"""For models that have no template, and for tools where a ChatML template knows none."""


def builtin_template(name: str) -> str:
    """Source of one of `BUILTIN_TEMPLATES`."""
    return files("kvstet.chat").joinpath("templates", f"{name}.jinja").read_text(encoding="utf-8")


def resolve_template(option: str | None, model_template: str | None) -> str:
    """Source of the template to use.

    ``option`` is the user's choice: a built-in name, a file, or the template itself (known by its ``{{`` or ``{%``).
    Without one it is the model's own, and `FALLBACK` for a model that has none. InvalidRequest: no such name or file.
    """
    if option is None:
        return model_template or builtin_template(FALLBACK)
    if "{{" in option or "{%" in option:
        return option
    if option in BUILTIN_TEMPLATES:
        return builtin_template(option)
    return _read(Path(option))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        names = ", ".join(BUILTIN_TEMPLATES)
        message = f"There is no chat template named '{path}' and no such file; the built-in ones are {names}."
        raise InvalidRequest(message, param="chat_template") from error
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"The chat template '{path}' cannot be read: {error}", param="chat_template") from error


def knows_tools(source: str) -> bool:
    """Whether the template reads the variable ``tools``. TemplateError where its syntax is wrong."""
    return any(name.name == "tools" and name.ctx == "load" for name in parse(source).find_all(nodes.Name))
