"""Traces without what was said: every text becomes placeholders (`kvstet.traces.placeholders`), all else stays.

What a text is, is told by its place in the request. Names of the API's own fields, and values of those that hold one
of a few words (``role``, ``type``), are no text. Within arguments of calls, where the client's tools have the word, all
names and values are. Of JSON schemas the keywords stay, and names of properties become what they become in calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from kvstet.dialects.values import from_json, items, objects
from kvstet.traces.format import Header, Line, Plan, Request, Response
from kvstet.traces.keys import without_keys
from kvstet.traces.placeholders import Placeholders
from kvstet.traces.reading import Exchange


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CHOICES = _words(
    """
    betas detail display effort encoding finish_reason format include media_type modalities model object phase role
    service_tier status stop_reason syntax tool_choice truncation ttl type verbosity
    """
)
"""Fields that hold one of a few words which the API has, or the name of a model."""

_CHOICE = re.compile(r"[\w.:/@-]{1,100}")
_SUMMARIES = frozenset({"auto", "concise", "detailed", "none"})
"""What ``summary`` says where it is a wish and no text."""

_FREE = frozenset({"arguments", "args", "client_metadata", "input", "input_examples", "metadata"})
"""Fields with objects whose names are not the API's."""
_JSON_TEXTS = frozenset({"args_raw", "arguments", "user_id"})
_SCHEMAS = frozenset({"input_schema", "output_schema", "parameters", "schema"})
_OPAQUE = frozenset({"data", "encrypted_content", "file_data", "signature"})

_SCHEMA_WORDS = frozenset({"$schema", "contentEncoding", "contentMediaType", "format", "type"})
_SCHEMA_NAMES = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_SCHEMA_VALUES = frozenset({"const", "default", "enum", "example", "examples", "required"})
_SCHEMA_KEYWORDS = (
    _words(
        """
        $anchor $comment $id $ref additionalItems additionalProperties allOf anyOf contains dependentRequired deprecated
        description else exclusiveMaximum exclusiveMinimum if items maxContains maxItems maxLength maxProperties maximum
        minContains minItems minLength minProperties minimum multipleOf not nullable oneOf pattern prefixItems
        propertyNames propertyOrdering readOnly strict then title unevaluatedItems unevaluatedProperties uniqueItems
        writeOnly
        """
    )
    | _SCHEMA_WORDS
    | _SCHEMA_NAMES
    | _SCHEMA_VALUES
)

_PLAIN_HEADERS = re.compile(
    r"accept|accept-encoding|accept-language|anthropic-.*|connection|content-length|content-type|openai-beta|te"
    r"|transfer-encoding|user-agent|x-app|x-stainless-.*",
    re.I,
)
_PATH_PARTS = _words("anthropic api chat completions count_tokens generate messages openai responses v1")

_OWN_WORDS = frozenset({"advice", "exact_because", "fidelity", "kind", "name", "role", "sentence", "verdict", "what"})
"""Fields of the ``kvstet`` object whose words are kvstet's, but for names of tools."""
_NAMING_TOOLS = frozenset({"tools_added", "tools_removed", "tools_changed", "arguments_changed"})
"""Edits of which ``what`` names tools; sentences have these names in brackets."""
_BRACKETS = re.compile(r"\(([^()]*)\)")

Wrapping = tuple[Callable[[str], str | None], Callable[[str], str]]
"""What finds the text in a wrapped one, or None where it is not so wrapped; and what wraps a text."""


def redacted(exchange: Exchange, key: bytes) -> Exchange:
    """One exchange without its text. Of several, `Redaction` takes less time."""
    redaction = Redaction(key)
    request = redaction.request(exchange.request)
    return Exchange(request, None if exchange.response is None else redaction.response(exchange.response))


_WRITERS: Sequence[Callable[[object], str]] = (
    lambda value: msgspec.json.encode(value).decode(),
    lambda value: json.dumps(value, ensure_ascii=False),
    lambda value: json.dumps(value, separators=(",", ":")),
    json.dumps,
)
"""As JavaScript, Rust and Go write it, and as Python does."""


class Redaction:
    """Of all lines under one key."""

    def __init__(self, key: bytes, wrappings: Sequence[Wrapping] = ()) -> None:
        """``wrappings``: how text may be wrapped in what else is taken for opaque."""
        self._placeholders = Placeholders(key)
        self._text = self._placeholders.text
        self._wrappings = wrappings

    def __repr__(self) -> str:
        return f"Redaction({self._placeholders!r})"

    def line(self, line: Line) -> Line:
        match line:
            case Header():
                return replace(line, redacted="text")
            case Request():
                return self.request(line)
            case Response():
                return self.response(line)

    def request(self, request: Request) -> Request:
        request = cast("Request", without_keys(request))
        return replace(
            request,
            path=self._path(request.path),
            headers=[(name, self._header(name, value)) for name, value in request.headers],
            body_raw=self._body(request.body_raw),
            label=self._text(request.label),
        )

    def response(self, response: Response) -> Response:
        response = cast("Response", without_keys(response))
        return replace(
            response,
            plan=None if response.plan is None else self._plan(response.plan),
            tokens=None,  # They are the text.
            usage=cast("dict[str, Any] | None", self._value(response.usage, "usage")),
            kvstet=None if response.kvstet is None else self._account(response.kvstet),
            error_raw=None if response.error_raw is None else self._body(response.error_raw),
            kind=self._text(response.kind),
        )

    def _plan(self, plan: Plan) -> Plan:
        calls = [
            replace(
                call,
                name=self._text(call.name),
                args_raw=self._placeholders.json_text(call.args_raw),
                id=self._text(call.id),
            )
            for call in plan.calls
        ]
        return replace(plan, reasoning=self._text(plan.reasoning), text=self._text(plan.text), calls=calls)

    def _path(self, path: str) -> str:
        plain, mark, query = path.partition("?")
        parts = [part if part in _PATH_PARTS else self._text(part) for part in plain.split("/")]
        pairs = [pair.partition("=") for pair in query.split("&")]
        return "/".join(parts) + mark + "&".join(name + sign + self._text(value) for name, sign, value in pairs)

    def _header(self, name: str, value: str) -> str:
        return value if _PLAIN_HEADERS.fullmatch(name) else self._placeholders.json_text(value)

    def _body(self, raw: str) -> str:
        """In the writing of the client, as far as that is one of the usual ones."""
        try:
            body = from_json(raw)
        except ValueError:
            return self._placeholders.json_text(raw)
        write = next((write for write in _WRITERS if _writes(write, body, raw)), json.dumps)
        return write(self._value(body, ""))

    # What the API has the word on

    def _value(self, value: object, name: str) -> object:
        match value:
            case str():
                return self._leaf(value, name)
            case dict():
                return {key: self._field(key, each) for key, each in cast("dict[str, object]", value).items()}
            case list():
                return [self._value(each, name) for each in cast("list[object]", value)]
            case _:
                return value

    def _field(self, name: str, value: object) -> object:
        match value:
            case dict() if name in _FREE:
                return self._free(cast("object", value))
            case dict() if name in _SCHEMAS:
                return self._schema(cast("object", value))
            case _:
                return self._value(value, name)

    def _leaf(self, text: str, name: str) -> str:
        if name in _OPAQUE or (name in ("url", "image_url", "file_url") and text.startswith("data:")):
            return self._opaque(text)
        if name in _JSON_TEXTS:
            return self._placeholders.json_text(text)
        is_choice = (name in _CHOICES and _CHOICE.fullmatch(text)) or (name == "summary" and text in _SUMMARIES)
        return text if is_choice else self._text(text)

    def _opaque(self, content: str) -> str:
        for unwrap, wrap in self._wrappings:
            if (text := unwrap(content)) is not None:
                return wrap(self._text(text))
        return self._placeholders.opaque(content)

    # What the client's tools have the word on

    def _free(self, value: object) -> object:
        match value:
            case str():
                return self._text(value)
            case dict():
                fields = cast("dict[str, object]", value)
                return {self._placeholders.name(key): self._inner(key, each) for key, each in fields.items()}
            case list():
                return [self._free(each) for each in cast("list[object]", value)]
            case _:
                return value

    def _inner(self, name: str, value: object) -> object:
        # Claude Code's metadata hold JSON in a text.
        is_json = name == "user_id" and isinstance(value, str)
        return self._placeholders.json_text(cast("str", value)) if is_json else self._free(value)

    def _schema(self, schema: object) -> object:
        match schema:
            case dict():
                fields = cast("dict[str, object]", schema)
                return {self._keyword(key): self._of_schema(key, each) for key, each in fields.items()}
            case list():
                return [self._schema(each) for each in cast("list[object]", schema)]
            case str():
                return self._text(schema)
            case _:
                return schema

    def _keyword(self, name: str) -> str:
        return name if name in _SCHEMA_KEYWORDS else self._text(name)

    def _of_schema(self, keyword: str, value: object) -> object:
        match value:
            case dict() if keyword in _SCHEMA_NAMES:
                named = cast("dict[str, object]", value)
                return {self._placeholders.name(name): self._schema(each) for name, each in named.items()}
            case str() if keyword == "$ref":
                return "/".join(part if part in _SCHEMA_NAMES else self._text(part) for part in value.split("/"))
            case list() if keyword == "required":
                return [self._placeholders.name(str(name)) for name in cast("list[object]", value)]
            case _ if keyword in _SCHEMA_VALUES:
                return self._free(value)
            case _ if keyword in _SCHEMA_WORDS:
                return value
            case _:
                return self._schema(value)

    # What kvstet tells

    def _account(self, account: Mapping[str, Any]) -> dict[str, Any]:
        edits = [edit for edit in objects(account.get("edits")) if edit.get("kind") in _NAMING_TOOLS]
        names = {str(name) for edit in edits for name in items(edit.get("what"))}
        return cast("dict[str, Any]", self._told(account, "", names))

    def _told(self, value: object, field: str, names: Set[str]) -> object:
        match value:
            case str() if field in _OWN_WORDS:
                return self._text(value) if value in names else _BRACKETS.sub(partial(self._bracket, names), value)
            case str():
                return self._text(value)
            case dict():
                fields = cast("dict[str, object]", value)
                return {name: self._told(each, name, names) for name, each in fields.items()}
            case list():
                return [self._told(each, field, names) for each in cast("list[object]", value)]
            case _:
                return value

    def _bracket(self, names: Set[str], brackets: re.Match[str]) -> str:
        """``(Read, Bash and 2 more)``"""
        parts = brackets[1].split(", ")
        plain = [part.partition(" and ")[0] for part in parts]
        replaced = [
            self._text(name) + part[len(name) :] if name in names else part
            for name, part in zip(plain, parts, strict=True)
        ]
        return f"({', '.join(replaced)})"


def _writes(write: Callable[[object], str], body: object, raw: str) -> bool:
    try:
        return write(body) == raw
    except (UnicodeEncodeError, RecursionError):
        return False
