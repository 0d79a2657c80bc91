"""Chat templates as Hugging Face's transformers runs them, with a mark where each message begins."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kvstet.chat.marks import Marker, Rendered, instrument
from kvstet.errors import TemplateError


class _GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}`` marks what the model wrote, for training; here it prints its body."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A scope of its own, because transformers makes it a call block: what is set inside is not seen outside.
        return nodes.Scope(body, lineno=lineno)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it does not escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    untyped: Any = environment  # Jinja declares both as dictionaries of anything
    untyped.filters["tojson"] = _to_json
    untyped.globals["raise_exception"] = _raise_exception
    return environment


_ENVIRONMENT = _environment()


def parse(source: str) -> nodes.Template:
    """The template's syntax tree. TemplateError where the syntax is wrong."""
    try:
        return _ENVIRONMENT.parse(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"The chat template has a syntax error in line {error.lineno}: {error.message}") from error
    except RecursionError as error:
        raise TemplateError("The chat template is nested too deeply.") from error


class ChatTemplate:
    """A compiled chat template; thread-safe."""

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        """``bos`` and ``eos`` are the texts that the template sees as ``bos_token`` and ``eos_token``."""
        self.source = source
        self._bos = bos
        self._eos = eos
        tree = parse(source)
        self._num_loops = instrument(tree)
        self._template = _compile(tree)

    def __repr__(self) -> str:
        return f"ChatTemplate({len(self.source)} characters, {self._num_loops} loops over messages)"

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        now: datetime,
        extra: Mapping[str, object] | None = None,
    ) -> Rendered:
        """Text of the conversation. ``now`` is what ``strftime_now`` tells; ``extra`` are the template's own variables.

        TemplateError: the template refused these messages, or failed on them.
        """
        # Copies, since messages are told apart by identity and a caller may use one object twice.
        copies = [dict(message) for message in messages]
        marker = Marker(copies)
        variables = {
            **(extra or {}),
            "messages": copies,
            "tools": list(tools) if tools else None,
            "documents": (extra or {}).get("documents"),
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos,
            "eos_token": self._eos,
            "strftime_now": now.strftime,
            **marker.functions,
        }
        try:
            output = self._template.render(variables)
        except jinja2.TemplateError as error:
            raise TemplateError(f"The chat template refused the conversation: {error.message}") from error
        except Exception as error:  # a template can make Python raise anything
            raise TemplateError(
                f"The chat template failed on the conversation: {type(error).__name__}: {error}"
            ) from error
        return marker.read(output)


def _compile(tree: nodes.Template) -> jinja2.Template:
    try:
        return _ENVIRONMENT.from_string(tree)
    except jinja2.TemplateError as error:
        raise TemplateError(f"The chat template cannot be compiled: {error.message}") from error
    except (SyntaxError, RecursionError) as error:  # break outside a loop, say
        raise TemplateError(f"The chat template cannot be compiled: {error}") from error
